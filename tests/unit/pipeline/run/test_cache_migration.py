"""Caches of key version 1, and runs that share a cell."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config.parse import load_grid
from pipeline.plan.cache_names import network_name, trained_name
from pipeline.plan.cell_keys import former_keys_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.estimate.cached import Cached
from pipeline.plan.grid_plan import make_plan
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.run import cell as cell_runs
from pipeline.run import driver
from pipeline.run.cache_migration import migrate_cache
from pipeline.run.reporting import silent
from pipeline.run.tasks import perform, tasks_of
from pipeline.storage.object_store import Storage
from pipeline.storage.run_paths import RunPaths

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
LABELS = ["name=renamed", "models.llama-tiny.name=other", "datasets.world.name=facts"]


def cells(*sets: str) -> list[Cell]:
    return cells_of(load_grid(GRID, sets))


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_files_of_version_1_are_found_by_todays_keys(kind: str, tmp_path: Path) -> None:
    place = f"memory://{uuid.uuid4().hex}" if kind == "memory" else str(tmp_path)
    storage, rledit = Storage(place), cells()[-1]
    key, network = former_keys_of(rledit)
    assert network is not None
    old = network_name("rledit", network)
    stem = old.removesuffix(".safetensors")
    files = (f"states/{key}/latest.json", f"states/{key}/00000002-a.safetensors", old,
             f"{stem}.progress/latest.json", f"edited/{key}.safetensors")  # fmt: skip
    for name in (*files, "states/another/latest.json"):
        storage.write_bytes(name, name.encode())
    assert Cached(place).has_network(rledit), "an estimate does not count its training"
    new = trained_name(rledit).removesuffix(".safetensors")
    due = {
        name.replace(key, key_of(rledit)).replace(stem, new): name.encode() for name in files
    } | {"states/another/latest.json": b"states/another/latest.json"}
    assert len(migrate_cache(cells(), place)) == 5
    assert {name: storage.read_bytes(name) for name in storage.list()} == due
    assert migrate_cache(cells(), place) == []


def test_what_is_there_by_todays_key_is_not_replaced(tmp_path: Path) -> None:
    storage, rledit = Storage(str(tmp_path)), cells()[-1]
    _, network = former_keys_of(rledit)
    storage.write_bytes(network_name("rledit", str(network)), b"old")
    storage.write_bytes(trained_name(rledit), b"new")
    assert migrate_cache([rledit], str(tmp_path)) == []
    assert storage.read_bytes(trained_name(rledit)) == b"new"


@pytest.mark.long
def test_two_grids_on_one_lake_run_a_shared_cell_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were planned before either had run it; the later one finds it done under its lease."""
    run_paths, lake = RunPaths.under(tmp_path), Lake(str(RunPaths.under(tmp_path).lake))
    stream, begun = cell_runs.edit_stream, []

    def counted(cell: Cell, *rest: Any) -> Any:
        begun.append(cell.grid)
        return stream(cell, *rest)

    monkeypatch.setattr(cell_runs, "edit_stream", counted)
    tasks = [tasks_of([own]) for own in (cells()[1], cells(*LABELS)[1])]
    assert list(tasks[0]) == list(tasks[1])
    for own in tasks:
        for task in own.values():
            assert perform(task, run_paths, silent) in ("done", "found")
    assert begun == ["tiny"]
    assert [r.address.grid for r in lake.manifest()] == ["tiny"]


@pytest.mark.long
def test_a_run_of_a_renamed_grid_starts_nothing_and_shows_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_paths = RunPaths.under(tmp_path)
    for task in tasks_of([cells()[0]]).values():
        perform(task, run_paths, silent)

    @contextmanager
    def fleet(_: int | None) -> Any:
        pytest.fail("nothing is to be run")
        yield 1

    monkeypatch.setattr(driver, "local_fleet", fleet)
    only = "editors=[{editor: none, variant: unedited}]"
    grid, lake = load_grid(GRID, [*LABELS, only]), Lake(run_paths.lake)
    plan = make_plan(grid, lake)
    assert driver.run_plan(grid, plan, run_paths, Console(quiet=True)) == 0
    (mine,) = {(r["model"], r["variant"]) for r in runs(lake, "renamed")}
    assert mine == ("other", "unedited")
    names = ("cell", "protocol", "n_edits", "efficacy", "specificity")
    old, new = ({tuple(r[n] for n in names) for r in runs(lake, g)} for g in ("tiny", "renamed"))
    assert old == new and len(new) == 2
