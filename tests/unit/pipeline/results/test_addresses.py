"""Addresses of a lake's cells: kept per grid, by several writers, on disks and object stores."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.paper.measured import read_cells
from pipeline.results.lake.addresses import Addresses, claim_home, home_name, home_of, place_of
from pipeline.results.lake.lake import Lake
from pipeline.results.query import query, runs
from pipeline.results.report import write_report
from pipeline.results.tracking.tracker import Tracker
from pipeline.storage.object_store import Storage
from tests.unit.helpers.lake_fixtures import address, cell

HERE = address()
THERE = replace(HERE, grid="other", model="a/b c", dataset="facts", variant="v")
AGAIN = replace(HERE, variant="same")


@pytest.fixture(params=["local", "memory"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lake]:
    memory = request.param == "memory"
    yield Lake(f"memory://{uuid.uuid4().hex}/lake" if memory else str(tmp_path / "lake"))


def test_a_cell_is_shown_at_every_address_with_the_same_rows(lake: Lake) -> None:
    lake.commit(cell())
    lake.show([HERE, THERE, AGAIN])
    assert lake.grids() == ["demo", "other"] and len(lake.manifest()) == 1
    assert [r.address for r in lake.manifest("other")] == [THERE]
    assert {r.address for r in lake.manifest("demo")} == {HERE, AGAIN}
    labels = {name: "" for name in ("grid", "model", "dataset", "variant")}
    one, two = ([row | labels for row in runs(lake, grid)] for grid in ("demo", "other"))
    assert sorted(one, key=str) == sorted(two * 2, key=str) and len(two) == 2
    for view in ("edits", "curves", "cells"):
        counts = f"SELECT grid, model, variant, count(*) AS n FROM {view} GROUP BY ALL ORDER BY ALL"
        rows = query(counts, lake).dicts()
        assert len(rows) == 3 and len({row["n"] for row in rows}) == 1, view


def test_rows_without_addresses_are_shown_where_they_were_written(lake: Lake) -> None:
    lake.commit(cell())
    assert [r.address for r in lake.shown()] == [HERE]
    lake.show([THERE])
    assert [r.address for r in lake.shown()] == [HERE, THERE]
    other = replace(HERE, cell_key="another")
    lake.show([other])  # its place is taken, by a cell that has not been run yet
    assert [r.address for r in lake.shown()] == [THERE]


def test_what_is_known_is_not_written_again(lake: Lake) -> None:
    lake.show([HERE, THERE])
    names = lake.storage.list("addresses")
    assert len(names) == 2
    lake.show([THERE, HERE])
    assert lake.storage.list("addresses") == names
    lake.show([AGAIN])
    assert len(lake.storage.list("addresses")) == 2, "the new file repeats the one before"
    assert set(lake.addresses().values()) == {HERE, THERE, AGAIN}


def test_two_writers_lose_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writes between the first one's look and its write."""
    lake.show([HERE])
    write, seen = Storage.write_bytes, []

    def overtaken(storage: Storage, name: str, data: bytes) -> None:
        if not seen:
            seen.append(name)
            lake.show([replace(HERE, variant="second")])
        write(storage, name, data)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write_bytes", overtaken)
        lake.show([replace(HERE, variant="first")])
    assert {a.variant for a in lake.addresses().values()} == {"", "first", "second"}
    lake.show([AGAIN])
    assert len(lake.storage.list("addresses")) == 1


def test_a_file_that_is_replaced_while_it_is_read_is_looked_for_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.show([HERE])
    read, seen = Storage.read_bytes, []

    def gone(storage: Storage, name: str) -> bytes:
        if name.startswith("addresses/") and not seen:
            seen.append(name)
            lake.show([AGAIN])  # which removes the file that has just been listed
        return read(storage, name)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "read_bytes", gone)
        found = Addresses(lake.storage).read()
    assert set(found) == {place_of(HERE), place_of(AGAIN)}


def test_a_damaged_file_is_named_and_the_next_run_of_its_grid_mends_it(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    lake.show([HERE, THERE])
    (name,) = lake.storage.list("addresses/demo")
    lake.storage.write_bytes(name, b"PAR1")
    assert list(lake.addresses().values()) == [THERE]
    assert name in caplog.text and "run the grid again" in caplog.text
    lake.show([HERE])
    assert set(lake.addresses().values()) == {HERE, THERE}


def test_the_later_cell_at_an_address_stands_there(lake: Lake) -> None:
    lake.show([HERE])
    lake.show([replace(HERE, cell_key="later")])
    (stands,) = lake.addresses().values()
    assert stands.cell_key == "later"


def test_writers_with_other_names_have_one_manifest_row(lake: Lake) -> None:
    lake.record_failure(HERE, "out of memory", identity={}, code_version="1")
    named = replace(cell(), address=THERE)
    lake.commit(named)
    (record,) = lake.manifest()
    assert record.done and record.address == HERE  # as whoever was first has called it
    assert lake.is_done(THERE) and lake.is_done(HERE) and lake.record(THERE) == record
    assert len(lake.storage.list("cells")) == 1 and lake.verify(HERE.cell_key) == []
    late = lake.record_failure(AGAIN, "too late", identity={}, code_version="1")
    assert late.done and len(lake.storage.list("cells")) == 1
    lake.forget(HERE.cell_key)
    assert [n for n in lake.storage.list() if not n.startswith("addresses/")] == []


@pytest.mark.parametrize("left", [b"", b'{"grid": "de'])
def test_a_home_that_a_kill_has_cut_short_is_written_again(lake: Lake, left: bytes) -> None:
    """A mount without hard links has the name of a file before its content."""
    lake.storage.write_bytes(home_name(HERE.cell_key), left)
    assert lake.record(HERE) is None and not lake.is_done(HERE)
    lake.commit(cell())
    assert lake.is_done(HERE) and home_of(lake.storage, THERE) == HERE


def test_a_home_that_is_being_written_is_waited_for(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_name(HERE.cell_key)
    lake.storage.write_bytes(home, b"")
    named = {
        name: getattr(THERE, name) for name in ("grid", "variant", "model", "dataset", "scale")
    }
    monkeypatch.setattr(
        time, "sleep", lambda _: lake.storage.write_bytes(home, json.dumps(named).encode())
    )
    assert claim_home(lake.storage, HERE) == replace(THERE, cell_key=HERE.cell_key)


def test_a_failure_is_shown_under_all_addresses(lake: Lake) -> None:
    lake.record_failure(HERE, "out of memory", identity={}, code_version="1")
    lake.show([HERE, THERE])
    found = query("SELECT grid, status FROM runs ORDER BY ALL", lake)
    assert found.rows == (("demo", "failed"), ("other", "failed"))


@pytest.mark.long
def test_published_tables_and_reports_tell_addresses_of_one_cell_apart(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.commit(cell())
    lake.commit(cell(editor="none"))
    lake.show([HERE, AGAIN, THERE, *(replace(address(editor="none"), grid=g) for g in "xy")])
    found = {(c.variant, c.n_edits): c for c in read_cells(lake, "demo")}
    one, two = found["", 40], found["same", 40]
    assert one.scores == two.scores != {} and one.curves == two.curves != {}
    assert one.spreads == two.spreads != {}
    costs: dict[str, Any] = {}
    for grid in ("demo", "other"):
        page = tmp_path / f"{grid}.html"
        write_report(lake, grid, page, figures_folder=None)
        costs[grid] = page.read_text()
    assert "a/b c" in costs["other"] and "tiny-llama" not in costs["other"]


def test_plain_readers_join_addresses_by_key(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.commit(cell())
    lake.show([HERE, THERE])
    addresses, scores = f"{tmp_path}/addresses/*/*.parquet", f"{tmp_path}/scores/**/*.parquet"
    rows = duckdb.sql(
        f"""SELECT a."grid", a.model, count(*) FROM read_parquet('{addresses}') a
        JOIN read_parquet('{scores}') s USING (cell_key) GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    assert rows == [("demo", "tiny-llama", 4), ("other", "a/b c", 4)]


@pytest.mark.long
def test_a_cell_is_tracked_at_each_address_with_the_same_values(tmp_path: Path) -> None:
    lake, uri = Lake(str(tmp_path / "lake")), f"sqlite:///{tmp_path}/mlflow.db"
    lake.commit(cell())
    lake.show([HERE, AGAIN, THERE])
    assert Tracker(uri, "demo").rebuild(lake) == 2 and Tracker(uri, "demo").rebuild(lake) == 0
    assert Tracker(uri, "other").rebuild(lake) == 1
    demo, other = (Tracker(uri, grid)._search("tags.kind = 'cell'") for grid in ("demo", "other"))
    assert {run.data.tags["variant"] for run in demo} == {"", "same"}
    assert {run.data.tags["cell"] for run in (*demo, *other)} == {HERE.cell_key}
    assert [run.data.metrics for run in demo] == 2 * [run.data.metrics for run in other]
