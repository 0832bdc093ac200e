"""Gradients of a shift, written out: of one that is merged into a linear, and of its solve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

REFINEMENTS = 2


class Trace(torch.autograd.Function):
    """Identity on a linear's output whose backward yields the gradients of a merged shift."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        x: Tensor,
        left: Tensor | None,
        right: Tensor,
        input_gradient: bool,
    ) -> Tensor:
        ctx.input_gradient = input_gradient
        ctx.save_for_backward(x, left, right)
        # A copy, not a view: some layers (Falcon's) add to their MLP's output in place.
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, left, right = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        rows = x.flatten(0, -2)
        inner = rows if left is None else rows @ left.to(rows.dtype).T
        grad_right = (inner.T @ flat).to(right.dtype)
        outer = None
        if ctx.needs_input_grad[2] or not ctx.input_gradient:
            outer = flat @ right.to(flat.dtype).T
        grad_left = None
        if ctx.needs_input_grad[2] and outer is not None:
            grad_left = (outer.T @ rows).to(left.dtype)
        grad_x = None
        if not ctx.input_gradient and outer is not None and ctx.needs_input_grad[1]:
            grad_x = -(outer if left is None else outer @ left.to(outer.dtype)).view_as(x)
        return gradient, grad_x, grad_left, grad_right, None


class RidgeSolve(torch.autograd.Function):
    """X = (A + λI)⁻¹ B given the Cholesky factor; implicit gradients in B and λ.

    With Z = (A + λI)⁻¹ Ḡ: ∂B = Z and ∂λ = −tr(Zᵀ X). A holds keys only and needs no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, factor: Tensor, root: Tensor | None, ridge: Tensor, right_side: Tensor
    ) -> Tensor:
        solution = _refined(factor, root, ridge, right_side)
        ctx.save_for_backward(factor, root, ridge, solution)
        return solution

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, Tensor]:
        factor, root, ridge, solution = ctx.saved_tensors
        adjoint = _refined(factor, root, ridge, gradients[0])
        return None, None, -(adjoint * solution).sum((-2, -1)), adjoint


def _refined(factor: Tensor, root: Tensor | None, ridge: Tensor, right_side: Tensor) -> Tensor:
    """(A + λI)⁻¹ B; with a root RᵀR = A, refined by residuals that never square the keys.

    The factored residual brings the error of S from ε·cond down to about ε·√cond; the residual of
    the Gram matrix would gain nothing.
    """
    solution = torch.cholesky_solve(right_side, factor)
    if root is not None:
        weight = ridge[:, None, None]
        for _ in range(REFINEMENTS):
            residual = right_side - root.mT @ (root @ solution) - weight * solution
            solution = solution + torch.cholesky_solve(residual, factor)
    return solution
