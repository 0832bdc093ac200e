"""UltraEdit: no training, the normal equation on z-scored keys and gradients (arXiv 2505.14679).

D = -η ‖k̂‖² v̂ and S = (KᵀK + I)⁻¹ KᵀD, with moments that run over the whole stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rledit.editors.moment_editor import MomentEditor, Shape
from rledit.moments import Formula
from rledit.shift import Solution, solve_normal_equation
from rledit.steps import AUTO, Step, check_step


@dataclass(frozen=True, kw_only=True)
class UltraEditConfig:
    """UltraEdit's settings.

    Attributes:
        modules: Edited linears.
        step: η; `auto` is calibrated, see `rledit.calibration`.
        ridge: λ of the normal equation.
        loss_group: Samples per loss group; it scales the value gradients.
        moments: How running moments are merged; `official` repeats the release.
    """

    modules: tuple[str, ...]
    step: Step = AUTO
    ridge: float = 1.0
    loss_group: int = 4
    moments: Formula = "exact"

    def __post_init__(self) -> None:
        check_step(self, "step")


class UltraEdit(MomentEditor):
    """Training-free editing with lifelong normalisation."""

    name = "ultraedit"
    Config = UltraEditConfig
    config: UltraEditConfig
    prefix_safe = True
    step_setting = "step"

    @property
    def group_size(self) -> int:
        """Samples per loss group."""
        return self.config.loss_group

    @property
    def formula(self) -> Formula:
        """How moments are merged."""
        return self.config.moments

    def solve(self, shape: Shape, keys: Tensor, z: Tensor) -> Solution:
        """Shift factors straight from the z-scores."""
        z_keys, z_values = z[..., : shape[0]], z[..., shape[0] :]
        strength = z_keys.square().sum(-1, keepdim=True)
        differences = -self.step * strength * z_values
        ridge = torch.full((len(keys),), self.config.ridge, device=keys.device)
        return solve_normal_equation(keys, differences, ridge, self.named(shape))
