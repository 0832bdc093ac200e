"""Row losses of the reward, cross-entropy and divergence, with their gradient in one buffer.

A reward pass holds a few (rows x vocabulary) matrices and little else that is large. Left to
autograd, picking rows out of them and putting gradients back fills several more; written out, the
gradient of every row is soft-max minus target, made in place of the soft-max.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def row_losses(logits: Tensor, labels: Tensor, kl_rows: Tensor, reference: Tensor | None) -> Tensor:
    """(rows,) cross-entropy, or KL(reference ‖ model) where `kl_rows`; both in one soft-max.

    Args:
        logits: (rows, vocabulary); may carry a graph.
        labels: (rows,) int64, the token to predict; not looked at where `kl_rows`.
        kl_rows: (rows,) bool, rows scored by divergence in place of cross-entropy.
        reference: (divergence rows, vocabulary), their log-probabilities to compare with, in order;
            None where there are no such rows.
    """
    divergent = kl_rows.nonzero().flatten().to(logits.device)
    plain = (~kl_rows).nonzero().flatten().to(logits.device)
    losses: Tensor = _RowLosses.apply(logits, labels[plain], plain, divergent, reference)
    return losses


class _RowLosses(torch.autograd.Function):
    """Row losses; their gradient, made in the forward, takes the place of the soft-max."""

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
        target = None
        if reference is not None:
            target = reference.exp()
            difference = log_p[divergent]
            torch.sub(reference, difference, out=difference)
            losses[divergent] = difference.mul_(target).sum(-1)
        if ctx.needs_input_grad[0]:
            gradient = log_p.exp_()
            gradient[plain, labels] -= 1.0
            if target is not None:
                gradient.index_add_(0, divergent, target, alpha=-1)
            ctx.gradient = gradient
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.gradient is None:
            raise RuntimeError("row losses can be differentiated once; run the forward again")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(gradients[0][:, None]), None, None, None, None
