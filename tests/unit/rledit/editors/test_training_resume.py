"""Training interrupted after any batch resumes there and gives bitwise equal networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rledit.editors import TrainableEditor, editor_class
from rledit.editors.base import BatchTrained
from rledit.model import EditableModel, Execution
from tests.unit.helpers.tiny_models import random_batches, tiny_model, two_shapes

SMALL: dict[str, Any] = {
    "rank": 3,
    "n_blocks": 1,
    "initial_step": 1e-2,
    "meta_lr": 1e-3,
    "depth": 2,
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "one step": ("rledit", {}, {}),
    "batch by batch": ("rledit", {"optimise": "batch"}, {}),
    "depth 1": ("rledit", {"depth": 1}, {}),
    "depth beyond the trajectory": ("rledit", {"depth": 9, "discount": 0.9}, {}),
    "two trajectories": ("rledit", {"trajectories_per_step": 2}, {}),
    "without transition": ("mend", {"depth": 1, "transition": False}, {}),
    "clipped every batch": ("rledit", {"clipping": "every_batch"}, {}),
    "reference previous": ("rledit", {"kl_reference": "previous"}, {}),
    "reference pretrained": ("rledit", {"kl_reference": "pretrained"}, {}),
    "official": ("rledit", {"reference": "official", "moments": "exact"}, {}),
    "a gate": ("hiedit", {"active_modules": 2, "gate_width": 8}, {}),
    "moments of the trajectory": ("malmen_rledit", {"moments_scope": "trajectory"}, {}),
    "small batches of prompts": ("rledit", {"kl_reference": "previous"}, {"token_budget": 24}),
    "a cache too small": ("rledit", {}, {"cache_bytes": 3000, "token_budget": 24}),
    "no cache": ("rledit", {"kl_reference": "previous"}, {"cache_bytes": 0}),
}
LENGTH = 3


def make(case: str, dtype: torch.dtype) -> TrainableEditor:
    name, settings, execution = CASES[case]
    whole = tiny_model("llama").to(dtype)
    modules = two_shapes(whole)
    model = EditableModel(whole, None, modules, Execution(**execution))
    cls = editor_class(name)
    editor = cls(model, cls.Config(modules=modules, **(SMALL | settings)))
    assert isinstance(editor, TrainableEditor)
    return editor


def steps_of(editor: TrainableEditor) -> list[list[Any]]:
    """Two optimiser steps; batches share prompts, within a trajectory and across."""
    count = editor.trajectories_per_step
    found = []
    for step in range(2):
        trajectories = []
        for i in range(count):
            batches = random_batches(LENGTH, 5, seed=step * count + i)
            # The window of one batch holds prompts of another, in another order.
            batches[2] = type(batches[2])(batches[2].edit, batches[1].unrelated, batches[0].edit)
            trajectories.append(batches)
        found.append(trajectories)
    return found


def run(editor: TrainableEditor, start: int = 0, until: int | None = None) -> list[BatchTrained]:
    """Train from the step that batch `start` is of; stop after `until` batches in all."""
    events: list[BatchTrained] = []
    per_step = LENGTH * editor.trajectories_per_step
    for number, trajectories in enumerate(steps_of(editor)):
        if (number + 1) * per_step <= start:
            continue
        for event in editor.train_batches(*trajectories):
            events.append(event)
            if number * per_step + event.done == until:
                return events
    return events


def through_a_file(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return load_file(path)


# What is left out of `make test`: cases with a neighbour that differs in a number alone, and the
# masters of a rounded model in others than the first.
SLOW = ("depth 1", "reference pretrained", "small batches of prompts")
LONG = tuple(case for case in CASES if case not in ("one step", *SLOW))
ROUNDED = ("two trajectories", "reference previous", "without transition")


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("one step", torch.float32),
        pytest.param("one step", torch.bfloat16, marks=pytest.mark.long),
        *(
            pytest.param(case, torch.float32, marks=mark)
            for mark, cases in ((pytest.mark.long, LONG), (pytest.mark.slow, SLOW))
            for case in cases
        ),
        *(pytest.param(case, torch.bfloat16, marks=pytest.mark.slow) for case in ROUNDED),
    ],
)
def test_after_every_batch(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    straight = make(case, dtype)
    before = {k: v.clone() for k, v in straight.model.model.state_dict().items()}
    whole = run(straight)
    expected = straight.training_state_dict()
    total = 2 * LENGTH * straight.trajectories_per_step
    assert len(whole) == total
    # Every batch of the first trajectory, and one inside the last.
    stops = [*range(1, LENGTH + 1), total - 2]
    for stop in stops:
        killed = make(case, dtype)
        run(killed, until=stop)
        saved = through_a_file(killed.training_state_dict(), tmp_path / f"{stop}.safetensors")
        resumed = make(case, dtype)
        resumed.load_training_state_dict(saved)
        # A state that was loaded and saved again is the same state.
        again = resumed.training_state_dict()
        assert again.keys() == saved.keys()
        assert all(again[k].equal(saved[k]) for k in saved)
        events = run(resumed, start=stop)
        assert [e.metrics for e in events] == [e.metrics for e in whole[stop:]], stop
        found = resumed.training_state_dict()
        assert found.keys() == expected.keys()
        unequal = [k for k in expected if not found[k].equal(expected[k])]
        assert not unequal, (stop, unequal)
        after = resumed.model.model.state_dict()
        assert all(after[k].equal(before[k]) for k in before)


def test_a_step_batch_by_batch_is_the_step() -> None:
    one, other = make("two trajectories", torch.float64), make("two trajectories", torch.float64)
    (first, _) = steps_of(one)
    events = list(one.train_batches(*first))
    assert [e.done for e in events] == list(range(1, 2 * LENGTH + 1))
    assert [e.metrics is None for e in events] == [True] * (2 * LENGTH - 1) + [False]
    assert events[-1].metrics == other.train_step(*first)
    a, b = one.training_state_dict(), other.training_state_dict()
    assert all(a[k].equal(b[k]) for k in b)


def test_a_state_of_another_trajectory_is_refused() -> None:
    killed, resumed = make("one step", torch.float32), make("one step", torch.float32)
    run(killed, until=2)
    resumed.load_training_state_dict(killed.training_state_dict())
    with pytest.raises(ValueError, match="has done 2 batches of its step.* have 1"):
        resumed.train_step(random_batches(1, 5))


def test_an_editor_that_trains_by_steps_alone_is_reported_by_steps() -> None:
    """As one from outside that knows nothing of batches."""
    editor = make("one step", torch.float32)
    events = list(TrainableEditor.train_batches(editor, *steps_of(editor)[0]))
    assert [e.done for e in events] == [LENGTH]
    assert events[0].metrics is not None
