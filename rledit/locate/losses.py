"""Losses of a value vector's rows, with their gradient in one buffer.

As in `rledit.losses`: a pass holds few (rows x vocabulary) matrices and little else that is large,
so their gradient is written out, in place of the soft-max.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def value_losses(logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
    """(rows,) cross-entropy of the first rows, then KL(model ‖ reference) of the others.

    Args:
        logits: (rows, vocabulary); may carry a graph.
        labels: (n,) int64, the token to predict at each of the first n rows.
        reference: (rows - n, vocabulary), log-probabilities that the others are compared with.
    """
    losses: Tensor = _ValueLosses.apply(logits, labels, reference)
    return losses


class _ValueLosses(torch.autograd.Function):
    """Row losses; their gradient, made in the forward, takes the place of the soft-max."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=-1)
        n, column = len(labels), labels[:, None]
        p = log_p[n:].exp()
        difference = log_p[n:] - reference
        divergence = (p * difference).sum(-1)
        losses = torch.cat([-log_p[:n].gather(1, column).squeeze(1), divergence])
        if ctx.needs_input_grad[0]:
            gradient = log_p.exp_()
            gradient[:n].scatter_add_(1, column, gradient.new_full(column.shape, -1.0))
            # Not p * (difference - divergence): at δ = 0 that is exactly zero, where autograd
            # leaves round-off, which is all that moves a δ that no answer depends on.
            slope = p * (difference + 1.0)
            torch.addcmul(slope, p, slope.sum(-1, keepdim=True), value=-1.0, out=gradient[n:])
            ctx.gradient = gradient
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        if ctx.gradient is None:
            raise RuntimeError("value losses can be differentiated once; run the forward again")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(gradients[0][:, None]), None, None
