"""Edits from files in a grid: read, drawn and checked before anything expensive starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cells import Cell, cells_of
from pipeline.config import load_grid
from pipeline.identity import checkpoint_identity
from pipeline.plan import make_plan
from pipeline.preflight import preflight
from pipeline.results.lake import Lake
from pipeline.run.cache import Cache
from pipeline.run.report import silent
from pipeline.run.stages.edit import edit_stream
from pipeline.run.stages.prepare import prepare_model
from pipeline.yaml_location import ConfigError
from rledit.datasets import DatasetError
from rledit.world import World, WorldConfig

GRID = Path(__file__).parent.parent / "cluster" / "tiny.yaml"
Rows = list[dict[str, Any]]


@pytest.fixture
def rows() -> Rows:
    """Edits of the tiny grid's world, in the schema of MALMEN's ZsRE files."""
    world = World(WorldConfig(n_subjects=60))
    return [
        {
            "src": edit.prompt,
            "ans": edit.target,
            "rephrase": edit.rephrases[0],
            "loc": edit.locality[0].prompt.removesuffix("?").rstrip(),
            "loc_ans": edit.locality[0].answer,
        }
        for edit in world.draw("evaluation", 30, seed=0)
    ]


def cell(tmp_path: Path, rows: Rows, *more: str) -> Cell:
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps(rows))
    stream = "streams=[{n_batches: 2, batch_size: 2}]"
    files = f"datasets.world.files={{evaluation: {path}}}"
    editors = "editors=[{editor: ultraedit, settings: {step: 0.001}}]"
    return cells_of(load_grid(GRID, [files, stream, editors, *more]))[0]


def test_a_file_of_edits_runs_like_the_world(tmp_path: Path, rows: Rows) -> None:
    chosen = cell(tmp_path, rows)
    preflight([chosen])
    folder = prepare_model(chosen, Cache(tmp_path), silent)
    scored = edit_stream(chosen, folder, Cache(tmp_path), None, silent)
    assert len(scored.edits) == 2 * (2 + 4)  # two protocols, two checkpoints
    prompts = {row["src"] for row in rows}
    drawn = chosen.source().draw("evaluation", 4, seed=0)
    assert {edit.prompt for edit in drawn} <= prompts


def test_the_file_is_part_of_the_identity(tmp_path: Path, rows: Rows) -> None:
    before = cell(tmp_path, rows)
    key = before.key
    other = tmp_path / "other"
    other.mkdir()
    assert cell(other, rows).key == key
    third = tmp_path / "third"
    third.mkdir()
    assert cell(third, rows[:-1]).key != key


def test_an_answer_the_tokenizer_does_not_know_names_its_row(tmp_path: Path, rows: Rows) -> None:
    for row in rows:
        row["ans"] = "Xyzzyx"
    with pytest.raises(ConfigError, match=r"zsre.json:\d+.*no token for a part of the answer"):
        preflight([cell(tmp_path, rows)])


def test_a_prompt_with_no_room_names_its_row(tmp_path: Path, rows: Rows) -> None:
    for row in rows:
        row["rephrase"] = row["rephrase"] + " of" * 70
    with pytest.raises(ConfigError, match=r"zsre.json:\d+.*exceed the model's 64 positions"):
        preflight([cell(tmp_path, rows)])


def test_a_blank_target_is_skipped_and_refused_with_strict(tmp_path: Path, rows: Rows) -> None:
    rows[3]["ans"] = "  "
    chosen = cell(tmp_path, rows)
    assert sum(chosen.source().sizes().values()) == len(rows) - 1
    with pytest.raises(DatasetError, match="zsre.json"):
        cell(tmp_path, rows, "datasets.world.strict=true").source()


@pytest.mark.parametrize(
    ("editor", "learns"),
    [
        ("{editor: malmen, settings: {train_steps: 1}}", True),
        ("{editor: mend, settings: {train_steps: 1}}", True),
        ("{editor: rledit, settings: {train_steps: 1}}", True),
        ("{editor: stableedit}", True),
        ("{editor: malmen, settings: {train_steps: 0}}", False),
        ("{editor: ultraedit, settings: {step: 0.001}}", False),
    ],
)
def test_training_data_keeps_the_token_contract(
    tmp_path: Path, rows: Rows, editor: str, learns: bool
) -> None:
    """A bad target anywhere in the train pool is found before the training that may draw it."""
    rows[-1]["ans"] = "Xyzzyx"
    pools = {"evaluation": rows[:6], "validation": rows[6:10], "train": rows[10:]}
    for split, own in pools.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(own))
    files = {split: str(tmp_path / f"{split}.json") for split in pools}
    sets = [f"datasets.world.files={json.dumps(files)}", f"editors=[{editor}]"]
    chosen = cell(tmp_path, rows, *sets)
    if not learns:
        assert preflight([chosen]) == {}
        return
    message = (
        rf"/{chosen.label}/.*: 1 of the 20 edits of the train pool, which {chosen.label} learns "
        r"from, cannot be used:\n  train.json:20: .*no token for a part of the answ"
    )
    with pytest.raises(ConfigError, match=message):
        preflight([chosen])


def test_a_row_that_fits_no_schema_stops_the_plan(tmp_path: Path, rows: Rows) -> None:
    del rows[5]["ans"]
    chosen = load_grid(GRID, [f"datasets.world.files={{evaluation: {tmp_path / 'zsre.json'}}}"])
    (tmp_path / "zsre.json").write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match="ans"):
        make_plan(chosen, Lake(str(tmp_path / "lake")))


def test_a_checkpoint_is_a_folder_or_a_pinned_revision(tmp_path: Path, rows: Rows) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert checkpoint_identity(f"owner/name@{commit}") == f"owner/name@{commit}"
    with pytest.raises(ConfigError, match="with its revision"):
        checkpoint_identity("owner/name")
    with pytest.raises(ConfigError, match="no config.json"):
        checkpoint_identity(str(tmp_path))
    folder = prepare_model(cell(tmp_path, rows), Cache(tmp_path), silent)
    loaded = cell(tmp_path, rows, f"models.llama-tiny.checkpoint={folder}")
    assert prepare_model(loaded, Cache(tmp_path), silent) == folder
    preflight([loaded])
    assert edit_stream(loaded, folder, Cache(tmp_path), None, silent).edits
