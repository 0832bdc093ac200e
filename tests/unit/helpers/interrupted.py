"""Training that ends inside a trajectory and is gone on with by another editor."""

from __future__ import annotations

from typing import Any

from rledit.editors import TrainableEditor
from tests.unit.helpers.tiny_models import random_batches

SMALL_NETWORK: dict[str, Any] = {
    "rank": 4,
    "n_blocks": 1,
    "initial_step": 1e-2,
    "meta_lr": 1e-3,
    "depth": 2,
}
"""Settings of a hypernetwork for models of a few thousand parameters."""


def train_with_an_interruption(
    ended: TrainableEditor, editor: TrainableEditor, size: int
) -> list[dict[str, float]]:
    """Two training steps on trajectories of three batches; what each measured.

    Args:
        ended: Begins the first step, and ends after two batches.
        editor: Goes on from its state, on the same model.
        size: Edits of a batch.
    """
    first, second = (random_batches(3, size, seed) for seed in (1, 2))
    batches = ended.train_batches(first)
    while next(batches).done < 2:
        pass
    saved = ended.training_state_dict()
    editor.model.weights.restore()
    editor.load_training_state_dict(saved)
    return [editor.train_step(trajectory) for trajectory in (first, second)]
