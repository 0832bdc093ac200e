"""What the version of the code covers, and what plans say of done cells of other code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grimp
import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import address_of, identity_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.grid_plan import code_lines, make_plan
from pipeline.plan.versions import SOURCES, code_version, sources_hash
from pipeline.results.lake.lake import Lake
from pipeline.run import driver
from pipeline.storage.run_paths import RunPaths
from tests.unit.helpers.lake_fixtures import cell as finished

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
OLD = "0.1.0+0123456789ab"
EDITORS = "editors=[{editor: none}, {editor: ultraedit, settings: {step: 1.0e-3}}]"

# Imported by what runs a cell, and none of its numbers comes from there.
BESIDE_NUMBERS = {
    "pipeline.errors",
    "pipeline.results.without_effect",
    "pipeline.results.tracking.liveness",
}


@pytest.fixture
def cells() -> tuple[Cell, ...]:
    return tuple(cells_of(load_grid(GRID, [EDITORS])))


def lake_of(folder: Path, *made: tuple[Cell, str]) -> Lake:
    """A lake with a finished cell for each cell and version of the code."""
    lake = Lake(str(folder / "lake"))
    for cell, version in made:
        result = replace(finished(), address=address_of(cell), identity=identity_of(cell))
        lake.commit(replace(result, code_version=version))
    return lake


# What the version covers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("rledit/decoding.py", True),
        ("pipeline/run/stages/edit.py", True),
        ("pipeline/results/lake/parquet.py", True),
        ("pipeline/cli/plan.py", False),
        ("pipeline/paper/table.py", False),
        ("pipeline/plan/estimate/memory.py", False),
        ("pipeline/results/figures/radar.py", False),
        ("jobs/overhead.py", False),
        ("tests/benchmarks/models.py", False),
        ("tests/chaos/driver.py", False),
    ],
)
def test_the_version_changes_with_what_numbers_depend_on(
    file: str, counts: bool, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    empty = sources_hash(tmp_path)
    path.write_text("A = 1\n")
    first = sources_hash(tmp_path)
    path.write_text("A = 2\n")
    second = sources_hash(tmp_path)
    assert len({empty, first, second}) == (3 if counts else 1)


def test_the_version_covers_all_that_a_cell_is_run_with() -> None:
    graph = grimp.build_graph("rledit", "pipeline")
    imported = graph.find_upstream_modules("pipeline.run.tasks")
    imported |= graph.find_upstream_modules("pipeline.run.fleet.attempts")
    assert {"rledit.shift", "pipeline.run.stages.measure"} <= imported
    folders = tuple(source.replace("/", ".") for source in SOURCES)
    outside = {m for m in imported if not any(f"{m}.".startswith(f"{f}.") for f in folders)}
    assert outside <= BESIDE_NUMBERS


# What a plan says ---------------------------------------------------------------------------------


def test_done_cells_of_other_code_stay_done_and_are_counted(
    cells: tuple[Cell, ...], tmp_path: Path
) -> None:
    none, ultraedit = cells
    lake = lake_of(tmp_path, (none, code_version()), (ultraedit, OLD))
    plan = make_plan(load_grid(GRID, [EDITORS]), lake)
    assert plan.missing == () and plan.other_code == {key_of(ultraedit): OLD}
    assert code_lines(plan) == [
        f"1 of 2 done cells are of other code than {code_version()} (1 by {OLD}) and kept: where "
        "a change of the code since changes numbers, theirs are the old ones; --rerun-other-code "
        "runs them again"
    ]
    only = make_plan(load_grid(GRID, [EDITORS]), lake, cells=[none])
    assert only.other_code == {} and code_lines(only) == []


def test_the_plan_command_says_so_and_counts_them_as_missing_when_asked(
    cells: tuple[Cell, ...], tmp_path: Path
) -> None:
    lake_of(tmp_path, *((cell, OLD) for cell in cells))
    command = ["plan", str(GRID), "--set", EDITORS, "--results", str(tmp_path)]
    kept = CliRunner().invoke(app, command)
    assert kept.exit_code == 0
    assert f"2 of 2 done cells are of other code than {code_version()} (2 by {OLD})" in kept.output
    assert "2 cells, 0 to run" in kept.output
    again = CliRunner().invoke(app, [*command, "--rerun-other-code"])
    assert again.exit_code == 0 and "2 cells, 2 to run" in again.output
    assert f"(2 by {OLD}): run again, their old rows are dropped" in again.output


@pytest.mark.long
def test_a_run_drops_the_rows_that_it_makes_again_and_no_others(
    cells: tuple[Cell, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none, ultraedit = cells
    lake = lake_of(tmp_path, (none, code_version()), (ultraedit, OLD))
    grid = load_grid(GRID, [EDITORS])
    begun: list[dict[str, str]] = []

    def run_tasks(tasks: Any, *_: Any) -> int:
        states = {r.address.editor: r.values["code_version"] for r in lake.manifest()}
        begun.append(states)
        return 0

    @contextmanager
    def fleet(_: int | None) -> Iterator[int]:
        yield 1

    monkeypatch.setattr(driver, "_run_tasks", run_tasks)
    monkeypatch.setattr(driver, "local_fleet", fleet)
    monkeypatch.setattr(driver, "room_of_fleet", lambda: (1, 0.0))
    monkeypatch.setattr(driver, "require_room", lambda tasks: None)
    run_paths, console = RunPaths.under(tmp_path), Console(quiet=True)

    plan = make_plan(grid, lake, rerun_other_code=True)
    assert plan.missing == (ultraedit,)
    refused = replace(plan, refused={key_of(ultraedit): "a row has no subject"})
    assert driver.run_plan(grid, refused, run_paths, console) == 1
    assert lake.is_done(address_of(ultraedit)) and not begun  # this code cannot make them again

    def no_room(_: object) -> None:
        raise ConfigError("needs 2 CPUs, and there is 1 here")

    with monkeypatch.context() as small:
        small.setattr(driver, "require_room", no_room)
        with pytest.raises(ConfigError, match="there is 1 here"):
            driver.run_plan(grid, plan, run_paths, console)
    assert lake.is_done(address_of(ultraedit)) and not begun  # nothing can make them again here
    assert driver.run_plan(grid, plan, run_paths, console) == 0
    assert begun == [{"none": code_version()}]
