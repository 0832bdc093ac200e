"""Editors that look subjects up, on data that gives none: refused before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.grid import Grid
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.checks import skip_reason
from pipeline.plan.grid_plan import make_plan
from pipeline.plan.preflight import preflight
from pipeline.results.lake.lake import Lake
from pipeline.results.rendering import format_value
from pipeline.results.tables import Column, Value
from pipeline.run.driver import run_plan
from pipeline.run.tasks import tasks_of
from pipeline.storage.run_paths import RunPaths
from rledit.editors import EDITORS

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
WORLD = "{n_subjects: 60, claims: true}"
FEVER = f"datasets=[{{name: fever, schema: fever, world: {WORLD}}}]"
MEMIT = "editors=[{editor: memit}]"
SUBJECTS = sorted(name for name, cls in EDITORS.items() if "subject" in cls.needs)


def grid(editors: str, *more: str) -> Grid:
    return load_grid(GRID, [f"editors=[{editors}]", *more])


def test_every_method_that_looks_subjects_up_says_so() -> None:
    plain = {"alphaedit", "encore", "memit", "nas", "prune", "rect", "rome"}
    sequential = {"betaedit", "deltaedit", "lyaplock"}
    assert sorted(plain | sequential) == SUBJECTS


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_cell_is_skipped_with_its_reason(name: str) -> None:
    (found,) = cells_of(grid(f"{{editor: {name}}}", FEVER))
    assert skip_reason(found) == f"{name} looks up subjects, and fever gives none"
    (plain,) = cells_of(grid(f"{{editor: {name}}}"))
    assert skip_reason(plain) is None


def test_a_run_records_it_computes_nothing_and_does_not_fail(tmp_path: Path) -> None:
    chosen = grid("{editor: memit}", FEVER)
    run_paths = RunPaths.under(tmp_path)
    lake = Lake(run_paths.lake)
    console = Console(quiet=True)
    assert run_plan(chosen, make_plan(chosen, lake), run_paths, console) == 0
    (record,) = lake.manifest()
    assert (record.status, record.done) == ("skipped", False)
    assert record.reason == "memit looks up subjects, and fever gives none"
    assert not (tmp_path / "cache").exists()

    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("lake/**/*.parquet")}
    assert run_plan(chosen, make_plan(chosen, lake), run_paths, console) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written

    asked = ["plan", str(GRID), "--results", str(tmp_path), "--set", FEVER, "--set", MEMIT]
    answer = CliRunner().invoke(app, asked)
    assert "skipped" in answer.stdout and "fever gives none" in answer.stdout
    assert "0 to run" in answer.stdout


def test_it_needs_no_model_and_no_moments() -> None:
    (task,) = tasks_of(cells_of(grid("{editor: memit}", FEVER))).values()
    assert (task.kind, task.needs) == ("edit", ())


def test_the_table_prints_a_dash() -> None:
    column = Column(stream=(1, 1), metric="efficacy")
    assert format_value(Value(status="skipped", n_missing=1), column, 1) == "–"
    assert format_value(Value(status="failed", n_missing=1), column, 1) == "failed"


def test_a_subject_outside_its_prompt_is_found_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (found,) = cells_of(grid("{editor: memit, settings: {target_modules: ['down:0']}}"))
    source = found.source()
    first, *rest = source.draw("evaluation", found.n_edits, seed=0)

    class Strange:
        data_hash = source.data_hash

        def sizes(self) -> dict[str, int]:
            return source.sizes()

        def draw(self, *_: object, **__: object) -> list[object]:
            return [replace(first, subject="Nobody", source="edits.json:7"), *rest]

    monkeypatch.setattr(Cell, "source", lambda _: Strange())
    with pytest.raises(ConfigError, match=r"edits.json:7: the subject 'Nobody' does not occur in"):
        preflight([found])
