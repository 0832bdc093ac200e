"""The hypernetwork shared by MEND, MALMEN and RLEdit, for all modules of one linear shape at once.

One block, for module j:  h ← h + scale_j ⊙ relu(h A B + b) + shift_j, A (d x r), B (r x d).
B, b and shift start at zero, so a new network is the identity. Per module it also holds the step
η_j and the ridge λ_j = exp(ρ_j) of the shift's equation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rledit.step_size import StepForm


class Block(nn.Module):
    """One residual low-rank block with per-module scale and shift."""

    def __init__(self, width: int, rank: int, n_modules: int, init_std: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(width, rank) * init_std)
        self.B = nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(n_modules, width))
        self.shift = nn.Parameter(torch.zeros(n_modules, width))

    def forward(self, h: Tensor) -> Tensor:
        """(M, n, d) → (M, n, d)."""
        # Not relu, whose slope at 0 is 0: with B and b at zero the network would never move.
        update = (h @ self.A @ self.B + self.bias).clamp(min=0)
        return h + self.scale[:, None] * update + self.shift[:, None]


class Hypernetwork(nn.Module):
    """Maps normalised [K, V] rows of M modules of one shape to pseudo keys and pseudo values.

    Args:
        d_in: Input width of the linear layers.
        d_out: Output width of the linear layers.
        n_modules: Number of modules M that share the network.
        rank: Rank r of every block.
        n_blocks: Number of blocks.
        initial_step: η at the start.
        initial_ridge: λ at the start.
        step_form: `log` learns η = η₀ exp(s), which keeps its sign and its scale; `raw` learns η
            itself, as the releases do.
        init_std: Standard deviation of A at the start.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        n_modules: int,
        *,
        rank: int,
        n_blocks: int,
        initial_step: float,
        initial_ridge: float = 1.0,
        step_form: StepForm = "log",
        init_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.d_in = d_in
        width = d_in + d_out
        if step_form == "log" and initial_step <= 0:
            raise ValueError(f"initial_step must be positive in log form, not {initial_step}")
        self._initial_step = initial_step
        self._step_form = step_form
        self.blocks = nn.ModuleList(
            Block(width, rank, n_modules, init_std) for _ in range(n_blocks)
        )
        start = 0.0 if step_form == "log" else initial_step
        self.step_parameter = nn.Parameter(torch.full((n_modules,), start))
        self.log_ridge = nn.Parameter(torch.full((n_modules,), math.log(initial_ridge)))

    @property
    def step(self) -> Tensor:
        """(M,) step η of each module."""
        if self._step_form == "raw":
            return self.step_parameter
        return self._initial_step * self.step_parameter.exp()

    @torch.no_grad()
    def scale_step(self, factor: float) -> None:
        """Multiply the step η of every module."""
        if self._step_form == "raw":
            self.step_parameter.mul_(factor)
        else:
            self.step_parameter.add_(math.log(factor))

    @property
    def ridge(self) -> Tensor:
        """(M,) ridge λ = exp(ρ) of each module."""
        return self.log_ridge.exp()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo keys (M, n, d_in) and pseudo values (M, n, d_out) of normalised rows (M, n, d)."""
        for block in self.blocks:
            z = block(z)
        return z[..., : self.d_in], z[..., self.d_in :]
