"""The hypernetwork before any training: the identity network inside RLEdit's equation.

What is left is D = -η₀ (k · k̂) v̂: the row that tells what training bought.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rledit.editors.conventions import OFFICIAL_BATCH, BatchConventions, UntrainedRecipe
from rledit.editors.moment_editor import MomentEditor, Shape
from rledit.editors.sphere import SPHERE_OFF, SphereSettings
from rledit.lazy_torch import Tensor, torch
from rledit.shift import Solution
from rledit.step_size import (
    AUTO,
    Step,
    check_initial_ridge,
    check_past_keys,
    check_step,
    check_z_clip,
)


@dataclass(frozen=True, kw_only=True)
class UntrainedConfig(SphereSettings):
    """Settings of the identity hypernetwork.

    Attributes:
        modules: Target modules.
        initial_step: η₀, RLEdit's step before training; `auto` is calibrated, see
            `rledit.calibration`.
        initial_ridge: λ of the normal equation, RLEdit's before training.
        loss_group: Samples per loss group.
        z_clip: Bound of the entries of normalised rows, keys and value gradients alike:
            they are clamped to ±`z_clip`. 0: none.
        past_keys: w, the weight of the keys of earlier batches in the shift's equation, see
            `rledit.editors.past_keys`: a shift then changes little of what the layers give for
            those keys. An extension of ours; it keeps d_in² numbers a module. 0: none, as
            published.
        reference: `official` has the order, loss groups and moments of RLEdit's release.
    """

    modules: tuple[str, ...]
    initial_step: Step = AUTO
    initial_ridge: float = 1.0
    loss_group: int = 4
    z_clip: float = 0.0
    past_keys: float = 0.0
    reference: UntrainedRecipe = "paper"

    younger: ClassVar[Mapping[str, Any]] = {
        "initial_ridge": 1.0,
        "z_clip": 0.0,
        "past_keys": 0.0,
        **SPHERE_OFF,
    }
    """See `HypernetworkConfig.younger`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_initial_ridge(self)
        check_z_clip(self)
        check_past_keys(self)
        check_step(self, "initial_step")


class Untrained(MomentEditor):
    """RLEdit with zero optimiser steps."""

    name = "untrained"
    checked = {"reference": "test_rledits_start_is_its_releases_rule_on_text"}
    Config = UntrainedConfig
    config: UntrainedConfig
    prefix_safe = True
    step_setting = "initial_step"

    @classmethod
    def batch_conventions_of(cls, config: UntrainedConfig) -> BatchConventions:
        """Order, loss groups and moments of the recipe."""
        return OFFICIAL_BATCH if config.reference == "official" else BatchConventions()

    def solve(self, shape: Shape, keys: Tensor, z: Tensor) -> Solution:
        """Shift factors of the identity network."""
        z_keys, z_values = z[..., : shape[0]], z[..., shape[0] :]
        agreement = (keys * z_keys).sum(-1, keepdim=True)
        differences = -self.step_size * agreement * z_values
        ridge = torch.full((len(keys),), self.config.initial_ridge, device=keys.device)
        return self.solve_equation(shape, keys, differences, ridge)
