"""DAFNet, InstructEdit and HiEdit through the stages: the synthetic world; SmolLM2 (slow)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import identity_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.estimate.workload import check_modules, workload_of
from pipeline.results.lake.records import prompt_of
from pipeline.run.cache import Cache
from pipeline.run.reporting import silent
from pipeline.run.stages.edit import StreamRows, edit_stream
from pipeline.run.stages.prepare import prepare_model
from pipeline.run.stages.train import load_trained, train
from rledit.instructions import TASKS
from tests.unit.helpers.prepared import prepared_model

TINY = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
SEQUENCES: dict[str, Any] = {
    "hidden_width": 32, "head_width": 32, "weighing_width": 16, "inner_width": 32,
    "initial_step": 1e-2, "train_steps": 60, "sequence_cap": 4, "first_cap": 4,
    "curriculum_patience": 100, "scored_edits_per_step": 4, "meta_lr": 3e-3, "step_lr": 3e-3,
}  # fmt: skip
INSTRUCTED: dict[str, Any] = {
    "reference": "converged", "patience": 0, "rank": 16, "train_steps": 4, "trajectory_batches": 4,
    "accumulation": 0, "initial_step": 1e-2, "warmup_steps": 0, "schedule": "constant",
}  # fmt: skip


GATED: dict[str, Any] = {k: v for k, v in INSTRUCTED.items() if k != "accumulation"}


def cell(editor: str, settings: dict[str, Any], *sets: str, n_batches: int = 2) -> Cell:
    entry = json.dumps([{"editor": editor, "settings": settings}])
    streams = f"streams=[{{n_batches: {n_batches}, batch_size: 4}}]"
    given = (f"editors={entry}", streams, "checkpoints=1", "seeds=[0]", *sets)
    return next(c for c in cells_of(load_grid(TINY, given)) if c.editor.editor == editor)


def run(cell: Cell, folder: Path, cache: Cache) -> tuple[StreamRows, list[float]]:
    """The rows of a stream, and the loss of every training step before it."""
    network = train(cell, folder, cache, silent)
    assert network is not None
    trained = load_trained(network)
    losses = [step["equivalence"] for step in trained.curve]
    return edit_stream(cell, folder, cache, trained, silent), losses


def assert_learns_and_edits(editor: str, rows: StreamRows, losses: list[float]) -> None:
    """Training lowers its loss; what so few steps teach DAFNet is no whole answer yet."""
    if editor == "dafnet":
        assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
        norms = [row["value"] for row in rows.steps if row["metric"] == "shift_norm"]
        assert len(norms) == 2 and min(norms) > 0
    else:
        assert mean(rows, 8) > mean(rows, 0)


def mean(rows: StreamRows, checkpoint: int, metric: str = "efficacy") -> float:
    (found,) = [
        row[metric]
        for row in rows.scores
        if (row["checkpoint"], row["protocol"]) == (checkpoint, "token_accuracy")
    ]
    return float(found)


@pytest.mark.parametrize(
    ("editor", "settings"),
    [
        ("hiedit", GATED),
        pytest.param("dafnet", SEQUENCES, marks=pytest.mark.long),
        pytest.param("instructedit", INSTRUCTED, marks=pytest.mark.long),
    ],
)
def test_training_and_a_stream_on_the_world(
    editor: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    chosen, cache = cell(editor, settings), Cache(tmp_path)
    rows, losses = run(chosen, prepared_model(chosen, cache), cache)
    assert_learns_and_edits(editor, rows, losses)
    assert {row["metric"] for row in rows.steps} >= {"edit_loss", "shift_norm", "edit_seconds"}


def test_a_network_is_trained_once_for_streams_of_all_lengths() -> None:
    short, long = (cell("dafnet", SEQUENCES, n_batches=n) for n in (2, 3))
    assert key_of(short) != key_of(long)
    assert short.trajectory_batches == long.trajectory_batches == 1
    assert cell("dafnet", SEQUENCES | {"sequence_cap": 9}).trajectory_batches == 3


def test_an_instruction_is_part_of_the_identity_and_said_of_the_prompts() -> None:
    told, other, none = (
        cell("instructedit", INSTRUCTED | {"instruction": number}) for number in (1, 10, 0)
    )
    assert len({key_of(c) for c in (told, other, none)}) == 3
    first = TASKS["facts"].instruction(1)
    assert told.instruction == first
    assert identity_of(told)["dataset"]["instruction"] == first.around("{}")
    assert "instruction" not in identity_of(none)["dataset"]
    assert prompt_of(identity_of(told)) == "bare with instruction"
    assert prompt_of(identity_of(none)) == "bare"


def test_the_task_is_that_of_the_data_unless_a_grid_names_one() -> None:
    zsre = "datasets=[{name: ZsRE, schema: zsre, world: {n_subjects: 60}}]"
    assert cell("instructedit", INSTRUCTED, zsre).settings.task == "zsre"
    assert cell("instructedit", INSTRUCTED | {"task": "recent"}, zsre).settings.task == "recent"
    assert cell("instructedit", INSTRUCTED).settings.task == "facts"


def test_more_active_modules_than_there_are_is_refused_before_a_run() -> None:
    chosen = cell("hiedit", GATED | {"active_modules": 3, "modules": ["down:all"]})
    said = (
        "model llama-tiny: active_modules 3 of 2 target modules cannot be edited; set it to at "
        "most 2, or leave it out for half of them (edited by hiedit)"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        check_modules([chosen])


def test_a_plan_counts_the_gate() -> None:
    gated, plain = cell("hiedit", GATED), cell("rledit", GATED)
    width = sum(next(iter(workload_of(plain).target_modules.values())))
    extra = workload_of(gated).network_parameters - workload_of(plain).network_parameters
    assert extra > 256 * width


@pytest.mark.slow
@pytest.mark.parametrize(
    ("editor", "settings"),
    [
        ("dafnet", SEQUENCES | {"initial_step": 1e-3, "meta_lr": 1e-3, "step_lr": 1e-3}),
        ("instructedit", INSTRUCTED | {"initial_step": 5e-4}),
        ("hiedit", GATED | {"initial_step": 5e-4}),
    ],
)
def test_training_and_a_stream_on_a_real_model(
    editor: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """SmolLM2-135M on facts that ship."""
    model = 'models=[{name: smol, preset: smollm2-135m, target_modules: ["down:27-28"]}]'
    chosen = cell(
        editor, {**settings, "modules": ["down:27-28"]}, model,
        "datasets=[{name: facts, real_facts: true}]", "scale=full", "answers={sample: 0}",
    )  # fmt: skip
    cache = Cache(tmp_path)
    rows, losses = run(chosen, prepare_model(chosen, cache, silent), cache)
    assert_learns_and_edits(editor, rows, losses)
