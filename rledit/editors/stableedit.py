"""StableEdit: UltraEdit with warmed-up moments and fully whitened gradients (arXiv 2605.11836).

D = −η ‖k̂‖² v̂ and S = (KᵀK + α I)⁻¹ Kᵀ D, where k̂ is the z-scored key and v̂ = Σ_v^{-1/2} (v −
v̄) with Σ_v the running covariance of the value gradients. Before the stream, the moments see
batches of the train split on the unedited model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rledit.capture import Captured, capture
from rledit.editors.base import Need, State, TrainingData, prefixed, unprefixed
from rledit.editors.conventions import STABLEEDIT_BATCH, BatchConventions, UntrainedRecipe
from rledit.editors.moment_editor import MomentEditor, Shape
from rledit.editors.own_prefixes import fresh_prefix_cache
from rledit.editors.sphere import SPHERE_OFF, SphereSettings
from rledit.editors.whitening import RunningCovariance
from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.shift import Solution, solve_normal_equation
from rledit.step_size import AUTO, Step, check_step, check_z_clip
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class StableEditConfig(SphereSettings):
    """StableEdit's settings.

    Attributes:
        modules: Target modules.
        step: η; `auto` is calibrated, see `rledit.calibration`.
        ridge: α; the paper uses 1 to 10.
        loss_group: Samples per loss group; it scales the value gradients. The published runs edit
            100 facts a batch in groups of 10.
        warmup_batches: Batches of the train split the moments see before the stream. 0: none, and
            nothing but the edits is needed.
        z_clip: Bound of the entries of normalised rows, keys and value gradients alike:
            they are clamped to ±`z_clip`. 0: none.
        shrinkage: How far the covariance is pulled towards a multiple of the identity.
        seed: Seed of the warm-up's draw.
        reference: `official` takes the longest samples first, as the authors' release does;
            `paper` takes them as they come.
    """

    modules: tuple[str, ...]
    step: Step = AUTO
    ridge: float = 1.0
    loss_group: int = 10
    warmup_batches: int = 20
    shrinkage: float = 1e-3
    seed: int = 0
    z_clip: float = 0.0
    reference: UntrainedRecipe = "paper"

    younger: ClassVar[Mapping[str, Any]] = {"z_clip": 0.0, **SPHERE_OFF}
    """See `HypernetworkConfig.younger`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_z_clip(self)
        check_step(self, "step")


class StableEdit(MomentEditor):
    """Training-free editing with whitening and a warm start."""

    name = "stableedit"
    checked = {"properties": "test_stableedit_warms_up_once_on_the_unedited_model"}
    Config = StableEditConfig
    config: StableEditConfig
    prefix_safe = True
    step_setting = "step"
    needs: ClassVar[frozenset[Need]] = frozenset({"training_data"})
    outlives_batch = ("moments.", "covariance.", "warm")

    def __init__(self, model: EditableModel, config: StableEditConfig) -> None:
        super().__init__(model, config)
        self.covariances = {
            shape: RunningCovariance(shape[1], model.device) for shape in self.shapes
        }
        self._draw: TrainingData | None = None
        self._warm = config.warmup_batches == 0

    @classmethod
    def batch_conventions_of(cls, config: StableEditConfig) -> BatchConventions:
        """Order, loss groups and moments of the recipe."""
        return STABLEEDIT_BATCH if config.reference == "official" else BatchConventions()

    @classmethod
    def needs_of(cls, config: StableEditConfig) -> frozenset[Need]:
        """Training data where it warms up."""
        return cls.needs if config.warmup_batches else frozenset()

    def load_training_data(self, draw: TrainingData) -> None:
        """Take the source of the warm-up batches."""
        self._draw = draw

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Warm up before the first batch, then edit."""
        self.warm_up()
        return super().edit(batch)

    def normalise(self, shape: Shape, rows: Tensor) -> Tensor:
        """Z-scored keys and whitened value gradients."""
        moments = self.moments[shape]
        z = super().normalise(shape, rows)
        z_keys, z_values = z[..., : shape[0]], z[..., shape[0] :]
        eps = torch.finfo(torch.float32).eps
        values = z_values * (moments.std + eps)[shape[0] :] + moments.mean[shape[0] :]
        whitened = self.covariances[shape].whiten(values, self.config.shrinkage).to(rows.dtype)
        return torch.cat([z_keys, whitened], dim=-1)

    def solve(self, shape: Shape, keys: Tensor, z: Tensor) -> Solution:
        """Shift factors from z-scored keys and whitened value gradients."""
        z_keys, whitened = z[..., : shape[0]], z[..., shape[0] :]
        strength = z_keys.square().sum(-1, keepdim=True)
        differences = -self.step_size * strength * whitened
        ridge = torch.full((len(keys),), self.config.ridge, device=keys.device)
        return solve_normal_equation(keys, differences, ridge, self.named(shape))

    @torch.no_grad()
    def warm_up(self) -> None:
        """Show the moments batches of the train split, once."""
        if self._warm:
            return
        if self._draw is None:
            raise ValueError(
                f"editor {self.name!r} warms up on {self.config.warmup_batches} batches of "
                "training data; call load_training_data, or set warmup_batches to 0"
            )
        with fresh_prefix_cache(self.model):
            for batch in self._draw(self.config.warmup_batches, self.config.seed):
                self._update_moments(capture(self.model, batch.edit, self.tokens))
        self._warm = True

    def _update_moments(self, captured: Captured) -> None:
        super()._update_moments(captured)
        for shape, names in self.shapes.items():
            self.covariances[shape].update(torch.cat([captured.values[n] for n in names]))

    def state_dict(self) -> State:
        """Moments, covariances, and whether the warm-up is done."""
        state = super().state_dict() | {"warm": torch.tensor(self._warm)}
        for (d_in, d_out), covariance in self.covariances.items():
            state |= prefixed(f"covariance.{d_in}x{d_out}.", covariance.state_dict())
        return state

    def load_state_dict(self, state: State) -> None:
        """Put saved moments and covariances back."""
        super().load_state_dict(state)
        for (d_in, d_out), covariance in self.covariances.items():
            covariance.load_state_dict(unprefixed(f"covariance.{d_in}x{d_out}.", state))
        self._warm = bool(state["warm"])
