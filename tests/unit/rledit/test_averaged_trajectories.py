"""Several trajectories in one optimiser step: the mean of their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.editors import EDITORS
from rledit.model import EditableModel
from rledit.step_size import SettingError
from tests.unit.helpers.oracle import relative
from tests.unit.helpers.tiny_models import double_arithmetic, random_batches, tiny_model, two_shapes

SETTINGS: dict[str, Any] = {
    "rank": 4,
    "n_blocks": 1,
    "initial_step": 1e-2,
    "depth": 2,
    "moments_scope": "trajectory",
    "reg_coef": 1e-2,
    "max_grad_norm": 1e9,
}


def trained(monkeypatch: pytest.MonkeyPatch, *seeds: int) -> tuple[list[Tensor], dict[str, float]]:
    """Gradients at the optimiser step, and what was measured."""
    model = tiny_model("llama")
    modules = two_shapes(model)
    cls = EDITORS["rledit"]
    config = cls.Config(modules=modules, trajectories_per_step=len(seeds), **SETTINGS)
    editor: Any = cls(EditableModel(model, None, modules), config)
    gradients: list[Tensor] = []

    def step() -> None:
        gradients.extend(p.grad.clone() for p in editor._parameters())

    monkeypatch.setattr(editor, "_step", step)
    measured = editor.train_step(*(random_batches(3, 5, seed) for seed in seeds))
    return gradients, measured


def test_the_gradient_is_the_mean_over_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    double_arithmetic(monkeypatch)
    each = [trained(monkeypatch, seed) for seed in (1, 2, 3)]
    together, measured = trained(monkeypatch, 1, 2, 3)
    judged = 0
    for parts in zip(together, *(gradients for gradients, _ in each), strict=True):
        mean = sum(parts[1:], torch.zeros_like(parts[0])) / 3
        if mean.any():  # a new network is the identity: one factor of a block has no gradient yet
            judged += 1
            assert relative(parts[0], mean) < 1e-9
        else:
            assert not parts[0].any()
    assert judged > len(together) / 2
    for name in ("loss", "equivalence", "divergence", "norm"):
        assert measured[name] == pytest.approx(sum(m[name] for _, m in each) / 3, rel=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{"optimise": "batch", "transition": False, "depth": 1}, {"clipping": "every_batch"}],
)
def test_it_needs_one_step_per_trajectory(settings: dict[str, Any]) -> None:
    """Said when the settings are read, before anything runs."""
    config = EDITORS["rledit"].Config
    with pytest.raises(SettingError, match="trajectories_per_step: 2: .*optimise: trajectory"):
        config(modules=("up:1",), trajectories_per_step=2, **settings)
