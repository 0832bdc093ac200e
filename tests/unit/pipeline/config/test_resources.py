"""Resources of cells: checked when a grid is read, and no part of a cell's fingerprint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import cells_of
from pipeline.plan.grid_plan import make_plan
from pipeline.plan.preflight import check_modules
from pipeline.results.lake.lake import Lake
from pipeline.run.tasks import tasks_of
from pipeline.storage.run_paths import RunPaths

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
GRIDS = Path(__file__).parents[4] / "jobs" / "grids"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("ranks: 0", r"resources.ranks\): expected at least 1, found 0"),
        ("gpus: 1.5", "expected a fraction of one GPU, or a whole number"),
        ("gpus: 0.5, ranks: 2", "ranks that share a GPU cannot exchange data"),
        ("cpus: 0", r"resources.cpus\): expected at least 1, found 0"),
        ("memory_gb: 0", r"resources.memory_gb\): expected a number above 0, found 0"),
        ("offload: true", "add sharding: zero3"),
        ("sharding: zero2", "'none' or 'zero3'"),
        ("rank: 2", "did you mean 'ranks'"),
    ],
)
def test_values_that_cannot_be_are_refused_with_the_remedy(given: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_grid(GRID, [f"resources={{{given}}}"])


def test_resources_are_no_part_of_a_cells_identity() -> None:
    one = cells_of(load_grid(GRID))
    many = cells_of(load_grid(GRID, ["resources={ranks: 4, sharding: zero3}", "keep_edited=true"]))
    assert [key_of(c) for c in one] == [key_of(c) for c in many]
    assert list(tasks_of(one)) == list(tasks_of(many))


def test_each_kind_of_task_gets_what_it_can_use() -> None:
    editors = "editors=[{editor: memit}, {editor: rledit, settings: {initial_step: 1.0e-3}}]"
    given = "resources={gpus: 1, ranks: 4, memory_gb: 8}"
    tasks = tasks_of(cells_of(load_grid(GRID, [editors, given]))).values()
    ranks = {t.kind: t.resources.ranks for t in tasks}
    assert ranks == {"prepare": 1, "statistics": 1, "train": 4, "edit": 4}
    assert {t.kind: t.resources.gpus for t in tasks}["prepare"] == 0
    assert {t.resources.cpus for t in tasks} == {1}
    sharded = tasks_of(cells_of(load_grid(GRID, [editors, given, "resources.sharding=zero3"])))
    assert {t.kind: t.resources.ranks for t in sharded.values()}["statistics"] == 4


@pytest.mark.parametrize("sharding", ["none", "zero3"])
def test_editors_of_whole_matrices_are_planned_on_several_ranks(
    sharding: str, tmp_path: Path
) -> None:
    tuned = load_grid(
        GRID, ["editors=[{editor: ft_l}]", f"resources={{ranks: 2, sharding: {sharding}}}"]
    )
    plan = make_plan(tuned, Lake(str(tmp_path)))
    assert "ft_l" in {cell.editor.editor for cell in plan.missing}


def test_workers_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("one\ntwo\n")
    grid = load_grid(GRID, ["editors=[{editor: memit}]", "statistics={corpus: corpus.txt}"])
    (cell,) = cells_of(grid)
    located = {t.cell.statistics.corpus for t in tasks_of([cell]).values()}
    assert located == {str(tmp_path / "corpus.txt")}
    assert {key_of(t.cell) for t in tasks_of([cell]).values()} == {key_of(cell)}
    run_paths = RunPaths.under(Path("results"), lake="lake", cache="s3://bucket/cache")
    assert run_paths.lake == os.path.join(str(tmp_path), "lake")
    assert run_paths.cache == "s3://bucket/cache"


@pytest.mark.parametrize(
    ("layer", "fact_token", "refused"),
    [(27, "subject_last", True), (27, "last", False), (13, "subject_last", False)],
)
def test_values_that_no_answer_depends_on_are_refused(
    layer: int, fact_token: str, refused: bool
) -> None:
    """Of 28 layers, which a proxy has fewer of."""
    settings = f"{{target_modules: ['down:{layer}'], fact_token: {fact_token}}}"
    given = [f"editors=[{{editor: memit, settings: {settings}}}]"]
    (cell, *_) = cells_of(load_grid(GRIDS / "gptj.yaml", given, "proxy", 1))
    if refused:
        with pytest.raises(ConfigError, match="no attention carries.*fact_token: last"):
            check_modules(cell)
    else:
        check_modules(cell)
