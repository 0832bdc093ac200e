"""The reward of a window of batches, back-propagated into dense weight gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rledit.tokenization import EditBatch
from tests.reference.passes import group_cross_entropy, group_divergence, loss_groups
from tests.reference.settings import ReferenceConfig
from tests.reference.weights import Matrices, ReferenceWeights


def reference_reward(
    model: Any,
    weights: ReferenceWeights,
    window: Sequence[EditBatch],
    deltas: Matrices,
    config: ReferenceConfig,
) -> dict[str, float]:
    """Σ_j μ^j (L_e + λ_loc KL) over the window, its gradient left in the edited weights' `grad`.

    Args:
        model: The language model.
        weights: Its edited weights, at W_{t-1}.
        window: The batches scored, newest first.
        deltas: ΔW_t of each module; every scoring forward adds it and takes it away again.
        config: μ, λ_loc and the reference of the divergence.

    Returns:
        The decayed sums of both parts, `equivalent` and `unrelated` (without λ_loc).
    """
    losses = {"equivalent": 0.0, "unrelated": 0.0}
    previous = weights.copies()
    for j, batch in enumerate(window):
        decay = config.decay**j
        for inputs, labels in loss_groups(batch.equivalent, model):
            with weights.edited(deltas, previous):
                loss = group_cross_entropy(_logits(model, inputs), labels)
                (decay * loss).backward()
            losses["equivalent"] += decay * loss.item()
        for inputs, labels in loss_groups(batch.unrelated, model):
            reference = _reference(model, weights, inputs, config)
            with weights.edited(deltas, previous):
                loss = group_divergence(reference, _logits(model, inputs), labels)
                (decay * config.loc_coef * loss).backward()
            losses["unrelated"] += decay * loss.item()
    return losses


@torch.no_grad()
def _reference(
    model: Any, weights: ReferenceWeights, inputs: dict[str, Tensor], config: ReferenceConfig
) -> Tensor:
    """Logits (samples, T, vocabulary) of the model whose behaviour is to be kept."""
    if config.kl_reference == "previous":
        return _logits(model, inputs)
    with weights.unedited():
        return _logits(model, inputs)


def _logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits
