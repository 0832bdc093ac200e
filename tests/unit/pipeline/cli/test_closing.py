"""What a run says before it begins, at its end, and when it is interrupted."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli.closing import closing_lines, kept_lines
from pipeline.config.parse import load_grid
from pipeline.plan.cell_keys import address_of, identity_of, key_of
from pipeline.plan.cells import Cell
from pipeline.plan.grid_plan import Plan, counts_line, make_plan
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellResult
from pipeline.results.query import connect, query
from pipeline.run.command_line import command_line
from pipeline.run.run_file import RunningTask, RunSituation, run_file
from pipeline.run.signals import Interrupted
from pipeline.storage.run_paths import RunPaths
from tests.unit.helpers.lake_fixtures import cell as finished

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
STEP = "editors=[{editor: none}, {editor: ultraedit, settings: {step: 1.0e-3}}, {editor: ft}]"


def planned(lake: Lake, *sets: str) -> Plan:
    return make_plan(load_grid(GRID, [STEP, *sets]), lake)


def done(cell: Cell) -> CellResult:
    return replace(finished(), address=address_of(cell), identity=identity_of(cell))


@pytest.fixture
def run_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """Of the grid's three cells, the two first are done."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = RunPaths.under(tmp_path)
    lake = Lake(found.lake)
    for cell in planned(lake).cells[:2]:
        lake.commit(done(cell))
        lake.show([address_of(cell)])
    return found


def test_a_run_says_how_many_cells_it_has_to_do_and_what_others_share(run_paths: RunPaths) -> None:
    lake = Lake(run_paths.lake)
    assert counts_line(planned(lake)) == "3 cells, 1 to run, 2 done already"
    other = planned(lake, "name=other")
    assert counts_line(other) == (
        "3 cells, 1 to run, 2 done already (2 of them shared with grid tiny)"
    )
    failing = planned(lake).missing[0]
    lake.record_failure(address_of(failing), "x", identity={}, code_version="1")
    assert counts_line(planned(lake)).endswith("2 done already, 1 of those to run failed before")


def test_the_end_of_a_run_names_every_place_and_the_cells_to_export(
    run_paths: RunPaths, tmp_path: Path
) -> None:
    plan = planned(Lake(run_paths.lake))
    given = {"--results": "my results", "--lake": None, "--cache": "s3://b/cache"}
    lines = closing_lines("tiny", plan, run_paths, "r/tiny.html", given)
    assert lines[:2] == ["report: r/tiny.html", f"lake:   {tmp_path}/lake"]
    assert lines[2].startswith("table:  ") and "--format latex" in lines[2]
    table = shlex.split(lines[2].removeprefix("table:  ").partition("  (")[0])
    assert Path(table[0]).name == "rledit" and table[1:] == ["table", "tiny", "--results", given[
        "--results"]]  # fmt: skip
    # Not those of the folder given: so they are named.
    assert lines[3].endswith(f"rledit mlflow tiny --tracking sqlite:///{tmp_path}/mlflow.db")
    own = RunPaths.under(tmp_path / "own")
    lines_of_own = closing_lines("tiny", plan, own, "x", {"--results": str(tmp_path / "own")})
    assert lines_of_own[3].endswith(f"rledit mlflow tiny --results {tmp_path}/own")
    assert "export CELL FOLDER --results 'my results' --cache s3://b/cache" in lines[4]
    (edited,) = [cell for cell in plan.cells[:2] if cell.editor_name != "none"]
    assert lines[5:] == [f"  {key_of(edited)}  {edited.path}"]


def test_many_cells_are_asked_for_by_a_query(tmp_path: Path) -> None:
    seeds = f"seeds={list(range(12))}"
    run_paths = RunPaths.under(tmp_path, tracking="https://me:secret@tracker.example")
    lake = Lake(run_paths.lake)
    plan = make_plan(load_grid(GRID, ["editors=[{editor: ft}]", seeds]), lake)
    for cell in plan.cells:
        lake.commit(done(cell))
    lines = closing_lines("tiny", plan, run_paths, "x", {})
    assert len(lines) == 5 + 10 + 1 and "and 2 more: " in lines[-1]
    (_, _, sql) = shlex.split(lines[-1].partition(" more: ")[2])
    assert {row["cell"] for row in query(sql, connect(lake)).dicts()} == set(
        map(key_of, plan.cells)
    )
    assert lines[3].endswith("mlflow tiny --tracking 'https://***@tracker.example'  "
                             "(https://***@tracker.example)")  # fmt: skip


def test_ctrl_c_says_what_was_under_way_and_the_command_that_goes_on(run_paths: RunPaths) -> None:
    lake = Lake(run_paths.lake)
    plan = planned(lake)
    running = RunningTask(
        label="train rledit 3x4 seed 0", position="30/80 batches at 2/s, 25 s left", detail="",
        seconds=15.0,
    )  # fmt: skip
    counts = {"cells": 3, "done_before": 2, "skipped": 0}
    with (
        pytest.raises(Interrupted),
        run_file(lake.storage, "tiny", **counts) as file,
    ):
        file.update(RunSituation(running=(running,)))
        raise Interrupted
    said = kept_lines(plan, "tiny", run_paths).splitlines()
    assert said[0].startswith(f"interrupted; 2 of 3 cells are done and kept in {run_paths.lake}. ")
    assert said[1] == "  under way: train rledit 3x4 seed 0: 30/80 batches"
    assert said[2] == f"go on with: {command_line()}"
    early = kept_lines(None, "tiny", run_paths)
    assert early.startswith("interrupted while the grid was planned; ") and said[2] in early
