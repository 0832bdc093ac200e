"""When a descent makes a step, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.editors.tuning import Descent, descend
from rledit.model import EditableModel
from tests.unit.helpers.text_edits import tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model


def descended(
    passes: Sequence[Sequence[float]], monkeypatch: pytest.MonkeyPatch, stop_loss: float
) -> tuple[list[float], list[float]]:
    """Losses met in passes whose mini-batches have these, and those that a step was made for."""
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), ("down:1",))
    stepped: list[float] = []
    latest = [0.0]

    def scripted(_: Any, weights: Any, objective: float) -> tuple[float, dict[str, Tensor]]:
        latest[0] = objective
        return objective, {name: torch.ones_like(weights.read(name)) for name in weights.names}

    write = model.weights.set

    def noting(name: str, value: Tensor) -> None:
        stepped.append(latest[0])
        write(name, value)

    monkeypatch.setattr("rledit.editors.tuning._gradients", scripted)
    monkeypatch.setattr(model.weights, "set", noting)
    config = Descent(lr=1e-3, stop_loss=stop_loss)
    met = descend(model, model.weights, passes, config)  # type: ignore[arg-type]
    return met, stepped


def test_a_mini_batch_below_the_stop_makes_no_step_and_a_pass_below_it_is_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the mean of a pass, not by each of its mini-batches."""
    passes = [[0.5, 0.005, 0.2], [0.02, 0.004, 0.009], [0.011, 0.001, 0.001], [0.7, 0.7, 0.7]]
    met, stepped = descended(passes, monkeypatch, stop_loss=0.01)
    assert met == [loss for own in passes[:3] for loss in own]
    assert stepped == [0.5, 0.2, 0.02, 0.011]


def test_without_a_stop_every_mini_batch_makes_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = [[0.5, 0.0], [0.0, 0.0]]
    met, stepped = descended(passes, monkeypatch, stop_loss=0.0)
    assert met == stepped == [0.5, 0.0, 0.0, 0.0]
