"""Row losses of the reward, cross-entropy and divergence, with their gradient in one buffer.

A reward pass holds a few (rows x vocabulary) matrices and little else that is large. Left to
autograd, picking rows out of them and putting gradients back fills several more; written out, the
gradient of every row is soft-max minus target: one buffer, two sparse or half-size subtractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def row_losses(
    logits: Tensor, labels: Tensor, kl_rows: Tensor, references: Sequence[Tensor | None]
) -> Tensor:
    """(rows,) cross-entropy, or KL(reference ‖ model) where `kl_rows`; both in one soft-max.

    Args:
        logits: (rows, vocabulary); may carry a graph.
        labels: (rows,) int64, the token to predict; not looked at where `kl_rows`.
        kl_rows: (rows,) bool, rows scored by divergence in place of cross-entropy.
        references: Log-probabilities (a, vocabulary) whose concatenation matches the divergence
            rows in order; None for samples scored by cross-entropy.
    """
    divergent = kl_rows.nonzero().flatten().to(logits.device)
    plain = (~kl_rows).nonzero().flatten().to(logits.device)
    reference = None
    if len(divergent):
        reference = torch.cat([r for r in references if r is not None]).to(logits)
    losses: Tensor = _RowLosses.apply(logits, labels[plain], plain, divergent, reference)
    return losses


class _RowLosses(torch.autograd.Function):
    """Row losses whose gradient is softmax(logits) minus one-hot label or reference."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        plain: Tensor,
        divergent: Tensor,
        reference: Tensor | None,
    ) -> Tensor:
        log_p = F.log_softmax(logits, dim=-1)
        losses = log_p.new_empty(len(log_p))
        losses[plain] = -log_p[plain, labels]
        if reference is not None:
            difference = reference - log_p[divergent]
            losses[divergent] = difference.mul_(reference.exp()).sum(-1)
        ctx.save_for_backward(log_p, labels, plain, divergent, reference)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        log_p, labels, plain, divergent, reference = ctx.saved_tensors
        gradient = log_p.exp()
        gradient[plain, labels] -= 1.0
        if reference is not None:
            gradient.index_add_(0, divergent, reference.exp(), alpha=-1)
        return gradient.mul_(gradients[0][:, None]), None, None, None, None
