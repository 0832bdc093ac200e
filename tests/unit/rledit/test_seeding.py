"""What is drawn by a seed leaves the generators of whoever asks as they are."""

from __future__ import annotations

import pytest
import torch

from rledit.editors import EDITORS
from rledit.model import EditableModel
from rledit.seeding import seeded
from tests.unit.helpers.tiny_models import tiny_model

NETWORKS = {
    "rledit": {"rank": 4, "n_blocks": 1, "initial_step": 1e-3},
    "hiedit": {"rank": 4, "n_blocks": 1, "initial_step": 1e-3, "gate_width": 4},
    "dafnet": {"hidden_width": 8, "head_width": 8, "weighing_width": 4, "inner_width": 8},
}


def test_a_draw_follows_from_its_seed_alone() -> None:
    with seeded(3):
        first = torch.randn(4)
    torch.randn(7)
    with seeded(3):
        assert torch.equal(torch.randn(4), first)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(4), first)


@pytest.mark.parametrize("name", NETWORKS)
def test_making_networks_moves_no_generator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the CPU's nor a GPU's, which `torch.manual_seed` would seed."""
    model = EditableModel(tiny_model("llama"), None, ("down:1-2",))
    before, seeds = torch.get_rng_state(), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    cls = EDITORS[name]
    cls(model, cls.Config(modules=model.modules, **NETWORKS[name]))
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeds
