"""The normal equation of a shift, solved as it stands, and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_shift(keys: Tensor, differences: Tensor, ridge: Tensor | float) -> Tensor:
    """S = (KᵀK + λI)⁻¹ KᵀD, (d_in, d_out), by a dense d_in x d_in solve."""
    return torch.linalg.solve(_normal_matrix(keys, ridge), keys.T @ differences)


def reference_shift_gradient(
    keys: Tensor, shift: Tensor, ridge: Tensor | float, shift_gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of D (n, d_out) and λ, given dS: G = (KᵀK + λI)⁻¹ dS, dD = KG, dλ = -tr GᵀS."""
    solved = torch.linalg.solve(_normal_matrix(keys, ridge), shift_gradient)
    return keys @ solved, -(solved * shift).sum()


def _normal_matrix(keys: Tensor, ridge: Tensor | float) -> Tensor:
    return keys.T @ keys + ridge * torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
