"""Edits merged into low-precision weights: the fp32 master, and what the rounded model realised."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rledit.model import EditableModel
from rledit.shift import LowRankShift
from rledit.weights import EditedWeights
from tests.unit.helpers.tiny_models import tiny_model

NAME = "model.layers.1.mlp.down_proj"


def _weights(dtype: torch.dtype) -> EditedWeights:
    return EditableModel(tiny_model("llama").to(dtype), None, (NAME,)).weights


def _shift(weights: EditedWeights, scale: float, seed: int = 0) -> LowRankShift:
    d_out, d_in = weights.original(NAME).shape
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(3, d_in, generator=generator)
    return LowRankShift(left, scale * torch.randn(3, d_out, generator=generator))


def _shown(weights: EditedWeights) -> Tensor:
    return weights.parameter(NAME).detach()


def test_edits_too_small_for_bf16_add_up_in_the_master() -> None:
    weights = _weights(torch.bfloat16)
    shift = _shift(weights, 1e-6)
    alone = _shown(weights).clone()
    for _ in range(500):
        weights.add(NAME, shift)
        alone += shift.dense().T.to(torch.bfloat16)
    intended = 500 * shift.dense().T
    realised = weights.read(NAME) - weights.original(NAME).float()
    assert weights.read(NAME).dtype == torch.float32
    # Each of 500 sums may round by half a unit in the last place of a weight, about 1e-7 at most.
    assert float((realised - intended).norm() / intended.norm()) < 1e-2
    assert torch.equal(_shown(weights), weights.read(NAME).to(torch.bfloat16))
    lost = alone.float() - weights.original(NAME).float()
    assert float((lost - intended).norm() / intended.norm()) > 0.5
    assert weights.delta_norm(NAME) == pytest.approx(float(intended.norm()), rel=1e-2)


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0])
def test_the_cosine_is_that_of_the_change_the_model_shows(scale: float) -> None:
    weights = _weights(torch.bfloat16)
    before = _shown(weights).float()
    shift = _shift(weights, scale)
    found = weights.add(NAME, shift)
    change = _shown(weights).float() - before
    expected = torch.cosine_similarity(change.flatten(), shift.dense().T.flatten(), dim=0)
    assert found == pytest.approx(float(expected), abs=1e-5)
    if scale == 1.0:
        assert found > 0.999
    else:
        assert found < 0.99


def test_an_edit_that_rounds_to_nothing_has_cosine_zero() -> None:
    weights = _weights(torch.bfloat16)
    assert weights.add(NAME, _shift(weights, 1e-12)) == 0.0


def test_precise_weights_need_no_master() -> None:
    weights = _weights(torch.float32)
    shift = _shift(weights, 1e-3)
    assert weights.add(NAME, shift) == 1.0
    assert weights.read(NAME).data_ptr() == _shown(weights).data_ptr()
    assert torch.allclose(_shown(weights), weights.original(NAME) + shift.dense().T)
