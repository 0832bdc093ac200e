"""Pools of a dataset: files of their own, and files that are cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.inputs.datasets import lacking
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.checks import insufficient_data, skip_reason
from pipeline.plan.grid_plan import make_plan, pool_lines
from pipeline.results.lake.lake import Lake
from rledit.world import World, WorldConfig

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"


def cells(tmp_path: Path, files: dict[str, int], *more: str) -> list[Cell]:
    """Cells on files with so many edits each."""
    named: dict[str, str] = {}
    for key, count in files.items():
        split: Any = "evaluation" if key == "evaluation" else "train"
        rows = [
            {"src": edit.prompt, "ans": edit.target, "rephrase": edit.rephrases[0],
             "loc": edit.locality[0].prompt, "loc_ans": edit.locality[0].answer}
            for edit in World(WorldConfig(n_subjects=60)).draw(split, count, seed=0)
        ]  # fmt: skip
        (tmp_path / f"{key}.json").write_text(json.dumps(rows))
        named[key] = str(tmp_path / f"{key}.json")
    entry = f"datasets=[{{name: ferries, files: {json.dumps(named)}, world: {{n_subjects: 60}}}}]"
    stream = "streams=[{n_batches: 2, batch_size: 5}]"
    return cells_of(load_grid(GRID, [entry, stream, *more]))


def test_one_file_for_evaluation_is_all_edited(tmp_path: Path) -> None:
    chosen = cells(tmp_path, {"evaluation": 10})
    assert pool_lines(chosen) == [
        "facts of ferries: train 0, validation 0, evaluation 10",
        "  train: no file is given for it",
        "  validation: no file is given for it",
        "  evaluation: all 10 edits of evaluation.json",
    ]
    by_editor = {cell.editor.editor: cell for cell in chosen}
    assert skip_reason(by_editor["none"]) is None and insufficient_data(by_editor["none"]) is None
    assert skip_reason(by_editor["ultraedit"]) is None
    # Those that learn are left out with what to give; the others run.
    assert skip_reason(by_editor["rledit"]) == (
        "rledit learns from the train pool, and that of ferries is empty (no file is given for "
        "it); give files.train, or files.all, which is cut into the pools that have no file, or "
        "leave the editor out"
    )
    make_plan(load_grid(GRID), Lake(str(tmp_path / "lake")), cells=chosen)


def test_what_is_cut_says_so(tmp_path: Path) -> None:
    chosen = cells(tmp_path, {"all": 10})
    cut = "given as `all` and cut into train/validation/evaluation 70/10/20"
    assert pool_lines(chosen)[1] == f"  train: 7 of the 10 edits of all.json, which is {cut}"
    with pytest.raises(ConfigError) as caught:
        make_plan(load_grid(GRID), Lake(str(tmp_path / "lake")), cells=chosen[:1])
    assert str(caught.value).partition(": ")[2] == (
        "needs 10 edits of the evaluation pool, which has 2 (2 of the 10 edits of all.json, which "
        f"is {cut}); shorten the stream, or give files.evaluation a file of its own, or a larger "
        "share by shares.evaluation"
    )
    shared = cells(tmp_path, {"all": 10}, "datasets.ferries.shares={evaluation: 1}")
    assert insufficient_data(shared[0]) is None and shared[0].source().sizes()["evaluation"] == 10


def test_a_tuning_stream_says_which_pool_it_needs(tmp_path: Path) -> None:
    files = {"train": 20, "evaluation": 10}
    (cell, *_) = cells(tmp_path, files, "datasets.ferries.split=validation")
    with pytest.raises(ConfigError, match=r"validation pool, which has 0 \(no file is given for i"):
        make_plan(load_grid(GRID), Lake(str(tmp_path / "lake")), cells=[cell])
    assert lacking(cell.dataset, "validation", "rephrase") == 0


def test_a_train_pool_that_is_too_small(tmp_path: Path) -> None:
    chosen = cells(tmp_path, {"train": 6, "evaluation": 10})
    rledit = [cell for cell in chosen if cell.editor.editor == "rledit"]
    with pytest.raises(ConfigError) as caught:
        make_plan(load_grid(GRID), Lake(str(tmp_path / "lake")), cells=rledit)
    assert str(caught.value).partition(": ")[2] == (
        "needs 10 edits of the train pool, which has 6 (all 6 edits of train.json); shorten the "
        "trajectory, or enlarge the file"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("files: {evaluation: e.json}, shares: {train: 1}",
         "(datasets.0.shares): shares say how the file given as `all` is cut, and there is none"),
        ("shares: {train: 1}", "a file given for a pool is that pool"),
        ("files: {all: a, train: t, validation: v, evaluation: e}",
         "(datasets.0.files): every pool has a file, so that nothing of `all` would be used"),
        ("files: {all: a, train: t}, shares: {train: 1}",
         "shares {'train': 1.0} make no sense; give non-negative numbers for validation, eval"),
        ("files: {test: t.json}", "'test'"),
    ],
)  # fmt: skip
def test_what_would_go_unused_is_refused(entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_grid(GRID, [f"datasets=[{{name: d, {entry}}}]"])
    assert message in str(caught.value)


def test_a_world_says_what_to_raise(tmp_path: Path) -> None:
    grid = load_grid(GRID, ["streams=[{n_batches: 50, batch_size: 4}]"])
    message = r"which has 36 \(facts of the synthetic world\); shorten the stream, or raise n_subj"
    with pytest.raises(ConfigError, match=message):
        make_plan(grid, Lake(str(tmp_path)))
