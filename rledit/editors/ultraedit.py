"""UltraEdit: no training, the normal equation on z-scored keys and gradients (arXiv 2505.14679).

D = -η ‖k̂‖² v̂ and S = (KᵀK + I)⁻¹ KᵀD, with moments that run over the whole stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rledit.editors.conventions import OFFICIAL_BATCH, BatchConventions, UntrainedRecipe
from rledit.editors.moment_editor import MomentEditor, Shape
from rledit.editors.sphere import SPHERE_OFF, SphereSettings
from rledit.lazy_torch import Tensor, torch
from rledit.shift import Solution, solve_normal_equation
from rledit.step_size import AUTO, Step, check_step, check_z_clip


@dataclass(frozen=True, kw_only=True)
class UltraEditConfig(SphereSettings):
    """UltraEdit's settings.

    Attributes:
        modules: Target modules.
        step: η; `auto` is calibrated, see `rledit.calibration`.
        ridge: λ of the normal equation.
        loss_group: Samples per loss group; it scales the value gradients. The published runs edit
            100 facts a batch in groups of 10.
        z_clip: Bound of the entries of normalised rows, keys and value gradients alike:
            they are clamped to ±`z_clip`. 0: none.
        reference: `official` repeats the authors' release: longest samples first, value gradients
            of an incomplete last loss group as zero, the release's running moments. `paper` takes
            samples as they come, keeps every row, and has exact moments.
    """

    modules: tuple[str, ...]
    step: Step = AUTO
    ridge: float = 1.0
    loss_group: int = 10
    z_clip: float = 0.0
    reference: UntrainedRecipe = "paper"

    younger: ClassVar[Mapping[str, Any]] = {"z_clip": 0.0, **SPHERE_OFF}
    """See `HypernetworkConfig.younger`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_z_clip(self)
        check_step(self, "step")


class UltraEdit(MomentEditor):
    """Training-free editing with lifelong normalisation."""

    name = "ultraedit"
    checked = {"reference": "test_ultraedit_is_its_releases_rule_on_text"}
    Config = UltraEditConfig
    config: UltraEditConfig
    prefix_safe = True
    step_setting = "step"

    @classmethod
    def batch_conventions_of(cls, config: UltraEditConfig) -> BatchConventions:
        """Order, loss groups and moments of the recipe."""
        return OFFICIAL_BATCH if config.reference == "official" else BatchConventions()

    def solve(self, shape: Shape, keys: Tensor, z: Tensor) -> Solution:
        """Shift factors straight from the z-scores."""
        z_keys, z_values = z[..., : shape[0]], z[..., shape[0] :]
        strength = z_keys.square().sum(-1, keepdim=True)
        differences = -self.step_size * strength * z_values
        ridge = torch.full((len(keys),), self.config.ridge, device=keys.device)
        return solve_normal_equation(keys, differences, ridge, self.named(shape))
