"""The lake: what is written can be read, and what is not whole is never read."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.results.lake import parquet
from pipeline.results.lake.lake import Lake, LakeError, shard_name
from pipeline.results.lake.manifest import manifest_bytes
from pipeline.results.lake.records import CellResult
from pipeline.results.lake.schemas import ADDRESS, SCHEMA_VERSION, TABLES, VERSION_KEY
from pipeline.results.query import runs
from pipeline.storage.object_store import Storage
from tests.unit.helpers.lake_fixtures import address, cell

KEY = cell().address.cell_key


def files(lake: Lake) -> list[str]:
    """All files but the one that keeps a cell's first address."""
    return [name for name in lake.storage.list() if not name.startswith("homes/")]


def done_keys(lake: Lake) -> set[str]:
    return {record.address.cell_key for record in lake.manifest() if record.done}


@pytest.fixture(params=["local", "memory"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake") if request.param == "local" else f"memory://{uuid.uuid4()}")


def same_rows(given: Any, read: dict[str, list[Any]]) -> None:
    assert {tuple(sorted(row.items())) for row in given} == {
        tuple(sorted(zip(read, row, strict=True))) for row in zip(*read.values(), strict=True)
    }


def test_a_cell_comes_back_as_it_went_in(lake: Lake) -> None:
    result = cell()
    assert not lake.is_done(KEY)
    record = lake.commit(result)
    assert lake.is_done(KEY) and lake.verify(KEY) == [] and done_keys(lake) == {KEY}
    assert lake.manifest() == [record] == [lake.record(KEY)]
    back = lake.result(record, tables=("edits", "steps", "scores"))
    for table in ("edits", "steps", "scores"):
        same_rows(getattr(result, table), getattr(back, table))
    rest = {"edits": (), "steps": (), "scores": (), "protocols": tuple(back.protocols)}
    assert dataclasses.replace(back, **rest) == dataclasses.replace(result, **rest)


def test_columns_and_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = cell()
    columns = {
        table: {name: [row[name] for row in getattr(rows, table)] for name in TABLES[table]}
        for table in ("edits", "steps", "scores")
    }
    backwards = {name: values[::-1] for name, values in columns["edits"].items()}
    one, two = Lake(str(tmp_path / "1")), Lake(str(tmp_path / "2"))
    first = one.commit(rows)
    second = two.commit(dataclasses.replace(rows, **{**columns, "edits": backwards}))
    assert first.files == second.files


def test_a_rerun_replaces_its_own_files_only(lake: Lake) -> None:
    lake.commit(cell())
    lake.commit(cell(seed=1))
    names = files(lake)
    before = {name: lake.storage.read_bytes(name) for name in names}
    lake.commit(cell(noise=1))
    after = files(lake)
    assert len(after) == len(names) == 8
    changed = {n for n in after if lake.storage.read_bytes(n) != before.get(n)}
    assert changed and all(n.rsplit("/", 1)[-1].startswith(KEY) for n in changed)


class Crash(Exception):
    """Stands for a kill at a moment of the commit."""


def crash_after(n_writes: int, write: Callable[..., None]) -> Callable[..., None]:
    left = [n_writes]

    def wrapped(storage: Storage, name: str, data: bytes) -> None:
        if left[0] == 0:
            raise Crash
        left[0] -= 1
        write(storage, name, data)

    return wrapped


@pytest.mark.parametrize("n_writes", range(4))
def test_a_crash_between_any_two_writes_leaves_no_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_writes: int
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(cell(seed=1))
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write_bytes", crash_after(n_writes, Storage.write_bytes))
        with pytest.raises(Crash):
            lake.commit(cell(noise=1))
    assert not lake.is_done(KEY)
    assert {row["cell"] for row in runs(lake)} == {address(seed=1).cell_key}
    lake.commit(cell(noise=1))
    assert lake.verify(KEY) == [] and len(done_keys(lake)) == 2


@pytest.mark.parametrize("n_writes", range(4))
def test_a_crash_in_a_second_commit_leaves_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_writes: int
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    first = lake.commit(cell())
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write_bytes", crash_after(n_writes, Storage.write_bytes))
        with pytest.raises(Crash):
            lake.commit(cell(noise=1))
    assert lake.record(KEY) == first and lake.verify(KEY) == []
    lake.commit(cell(noise=1))
    assert lake.verify(KEY) == []
    assert len(files(lake)) == 4, "what the crash left behind is removed"


@pytest.mark.parametrize("n_writes", range(4))
def test_two_writers_of_a_cell_never_mix_their_shards(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, n_writes: int
) -> None:
    """The second writer commits between any two writes of the first."""
    write, left = Storage.write_bytes, [n_writes]

    def overtaken(storage: Storage, name: str, data: bytes) -> None:
        if left[0] == 0:
            left[0] = -1
            lake.commit(cell(noise=1))
        left[0] -= 1
        write(storage, name, data)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write_bytes", overtaken)
        mine = lake.commit(cell())
    assert left[0] < -1, "nobody overtook"
    assert lake.record(KEY) == mine and lake.verify(KEY) == []
    assert len(files(lake)) == 4


@pytest.mark.parametrize("table", ["edits", "steps", "scores"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_shard_that_is_not_whole_takes_its_cell_out(
    lake: Lake, caplog: pytest.LogCaptureFixture, table: str, damage: str
) -> None:
    record = lake.commit(cell())
    lake.commit(cell(seed=1))
    path = record.files[table]["path"]
    if damage == "missing":
        lake.storage.delete(path)
    else:
        lake.storage.write_bytes(path, lake.storage.read_bytes(path)[:-7])
    with caplog.at_level(logging.WARNING):
        assert not lake.is_done(KEY)
    assert path in caplog.text
    found = {record.address.cell_key: record for record in lake.manifest()}
    assert found[KEY].status == "incomplete" and path in (found[KEY].reason or "")
    shown = {row["cell"]: row for row in runs(lake)}
    assert shown[KEY]["status"] == "incomplete" and shown[KEY]["efficacy"] is None
    with pytest.raises(LakeError, match="incomplete"):
        lake.columns("scores", found[KEY])


@pytest.mark.parametrize("before", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("listed", ["edits", "cells"])
def test_a_cell_that_is_committed_while_the_lake_is_read_is_whole_or_not_there(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, before: bool, listed: str
) -> None:
    if before:
        lake.commit(cell(noise=1))
    sizes, seen = Storage.sizes, []

    def overtaken(storage: Storage, prefix: str = "") -> dict[str, int]:
        found = sizes(storage, prefix)
        if prefix == listed and not seen:
            seen.append(prefix)
            lake.commit(cell())
        return found

    monkeypatch.setattr(Storage, "sizes", overtaken)
    records = lake.rows()
    assert seen and all(record.done for record in records) and len(records) in (int(before), 1)
    assert all(lake.verify(record.stored_key) == [] for record in records)


def test_a_flipped_bit_is_found(lake: Lake) -> None:
    record = lake.commit(cell())
    path = record.files["scores"]["path"]
    data = bytearray(lake.storage.read_bytes(path))
    data[len(data) // 2] ^= 1
    lake.storage.write_bytes(path, bytes(data))
    assert len(problems := lake.verify(KEY)) == 1 and path in problems[0]
    with pytest.raises(LakeError, match="run the cell again"):
        lake.columns("scores", record)


def test_a_half_written_manifest_row_counts_as_missing(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    lake.commit(cell())
    name = shard_name("cells", address())
    lake.storage.write_bytes(name, lake.storage.read_bytes(name)[:100])
    assert lake.manifest() == [] and not lake.is_done(KEY)
    assert name in caplog.text and "missing" in caplog.text


def test_orphans_are_never_read(lake: Lake) -> None:
    lake.commit(cell())
    lake.commit(cell(seed=1))
    lake.storage.delete(shard_name("cells", address()))
    assert {row["seed"] for row in runs(lake)} == {1}


def test_a_newer_schema_is_refused(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        newer = parquet._FILE_SCHEMAS["cells"].with_metadata({VERSION_KEY: str(SCHEMA_VERSION + 1)})
        patched.setitem(parquet._FILE_SCHEMAS, "cells", newer)
        patched.setattr(parquet, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        lake.commit(cell())
    with pytest.raises(LakeError, match=rf"schema version {SCHEMA_VERSION + 1}.*update it"):
        lake.manifest()


def test_failures_are_recorded_and_replaced(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    what = {"identity": {"seed": 0}, "code_version": "1"}
    lake.record_failure(address(), "worker died (SIGKILL)", **what)
    assert not lake.is_done(KEY)
    (row,) = runs(lake)
    assert (row["status"], row["efficacy"], row["protocol"]) == ("failed", None, None)
    assert lake.manifest()[0].reason == "worker died (SIGKILL)"
    assert lake.verify(KEY) == [f"cell {KEY} is failed: worker died (SIGKILL)"]
    lake.commit(cell())
    assert lake.is_done(KEY)
    lake.record_failure(address(), "too late", **what)
    assert lake.is_done(KEY) and "too late" in caplog.text


def test_no_secret_enters_the_lake(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = "planted-secret-value"
    monkeypatch.setenv("RAY_AUTH_TOKEN", planted)
    bad = {"uri": f"postgresql://me:{planted}@db", "nested": [{"hub_token": "also-secret"}]}
    lake.commit(dataclasses.replace(cell(), resolved=bad, versions=bad, identity=bad))
    lake.record_failure(address(seed=1), f"{planted}!", identity=bad, code_version="1")
    stored = str(lake.manifest())
    assert planted not in stored and "also-secret" not in stored
    assert lake.manifest()[0].values["resolved"]["uri"] == "postgresql://***@db"


@pytest.mark.parametrize("model", ["007", "meta-llama/Llama-3", "a=b c", "ü:%", "2024-01-01"])
def test_any_model_name_is_one_folder_for_every_reader(tmp_path: Path, model: str) -> None:
    lake = Lake(str(tmp_path / "a [lake]"))
    lake.commit(cell(model=model))
    assert {row["model"] for row in runs(lake)} == {model}
    assert lake.manifest()[0].address.model == model
    plain = Lake(str(tmp_path / "plain"))
    plain.commit(cell(model=model))
    glob = f"{tmp_path}/plain/scores/**/*.parquet"
    rows = duckdb.sql(
        f"SELECT * FROM read_parquet('{glob}', hive_partitioning=true, union_by_name=true)"
    ).fetchdf()
    assert set(rows["model"].astype(str).str[:10]) == {model[:10]} and len(rows) == 4
    frame = pd.read_parquet(tmp_path / "plain" / "scores")
    # pandas guesses the type of a folder's value, so that 007 is the number 7 there.
    assert set(frame["model"].astype(str)) == {"7" if model == "007" else model}
    assert set(rows.columns) == set(frame.columns) == set(ADDRESS) | set(TABLES["scores"])


@pytest.mark.parametrize("changes", [{"model": ""}, {"editor": "__HIVE_DEFAULT_PARTITION__"},
                                     {"dataset": "x" * 300}, {"cell_key": "a/b"},
                                     {"cell_key": ""}, {"cell_key": ".tmp-x"}])  # fmt: skip
def test_names_that_cannot_be_files_are_refused(lake: Lake, changes: dict[str, str]) -> None:
    result = dataclasses.replace(cell(), address=address(**changes))
    with pytest.raises(LakeError):
        lake.commit(result)
    assert lake.storage.list() == []


def changed(table: str, index: int, **values: Any) -> CellResult:
    rows = [dict(row) for row in getattr(cell(), table)]
    rows[index] |= values
    return dataclasses.replace(cell(), **{table: rows})


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (changed("scores", 0, eficacy=1.0), r"unknown column 'eficacy'; did you mean 'efficacy'"),
        (changed("scores", 1, protocol=None), r"row 1: column 'protocol' must have a value"),
        (changed("edits", 2, edit_index="two"), r"row 2: column 'edit_index' expects int32"),
        (changed("edits", 1, edit_index=0), r"rows 0 and 1 are both checkpoint=20"),
        (changed("edits", 3, batch_index=0.5), r"row 3: column 'batch_index'"),
        (dataclasses.replace(cell(), scores=()), "no row of scores"),
        (dataclasses.replace(cell(), steps={"step": [1], "metric": []}), "differ in length"),
        (dataclasses.replace(cell(), resolved={"x": object()}), "plain JSON"),
        (dataclasses.replace(cell(), status="failed"), "record_failure"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_written(
    lake: Lake, result: CellResult, says: str
) -> None:
    with pytest.raises(LakeError, match=says) as caught:
        lake.commit(result)
    assert KEY in str(caught.value)
    assert lake.storage.list() == []


def test_undefined_scores_are_null_and_diverged_curves_are_kept(lake: Lake) -> None:
    result = dataclasses.replace(
        changed("scores", 0, specificity=float("nan")),
        steps=[{"step": 10, "metric": "train_loss", "value": float("nan")}],
    )
    record = lake.commit(result)
    assert lake.columns("scores", record)["specificity"].count(None) == 1
    assert str(lake.columns("steps", record)["value"]) == "[nan]"


def test_times_are_utc(lake: Lake) -> None:
    moment = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    record = lake.commit(dataclasses.replace(cell(), started_at=moment))
    assert record.values["started_at"] == datetime(2026, 1, 2, 3, 4)


def test_files_say_which_schema_they_have(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    record = lake.commit(cell())
    for file in record.files.values():
        schema = pq.read_schema(tmp_path / file["path"])
        assert schema.metadata[VERSION_KEY.encode()] == str(SCHEMA_VERSION).encode()


@pytest.mark.long
def test_five_hundred_cells_are_listed_from_one_look_at_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning a large grid must not ask the store once per cell and table."""
    lake = Lake(str(tmp_path))
    record = lake.record_failure(address(), "x", identity={}, code_version="1")
    folder = tmp_path / Path(shard_name("cells", record.address)).parent
    for i in range(500):
        result = dataclasses.replace(cell(), address=address(cell_key=f"cell-{i}"), status="failed")
        (folder / f"cell-{i}.parquet").write_bytes(manifest_bytes(result, {}))
    listings: list[str] = []
    sizes = Storage.sizes
    monkeypatch.setattr(
        Storage, "sizes", lambda self, prefix="": listings.append(prefix) or sizes(self, prefix)
    )
    assert len(lake.manifest()) == 501
    assert sorted(listings) == sorted([*TABLES, "contained"])
