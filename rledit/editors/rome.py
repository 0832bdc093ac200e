"""ROME: one fact at a time by a rank-one update of one layer (arXiv 2202.05262).

ΔW = (v* − W k) (C⁻¹ k̄)ᵀ / ((C⁻¹ k̄)ᵀ k), with k̄ the key averaged over the contexts, k that of the
bare prompt, and v* optimised at the output of the target module. The edits of a batch follow one
another, each on the model that the one before it left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rledit.editors.base import Need, TargetModules
from rledit.editors.locate_editor import LocateConfig, LocateEditor, measured
from rledit.editors.own_prefixes import fresh_prefix_cache
from rledit.lazy_torch import Tensor, torch
from rledit.locate.contexts import Averaging
from rledit.locate.keys import observe, subject_keys
from rledit.locate.linear_systems import Factor, factorise
from rledit.locate.requests import Request
from rledit.locate.sites import LinearOutput
from rledit.locate.spread import LayerUpdate
from rledit.locate.value import Values, optimise_values
from rledit.model import EditableModel
from rledit.shift import LowRankShift
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class ROMEConfig(LocateConfig):
    """ROME's settings; `modules` names one linear. The defaults are those for Llama-3-8B.

    Attributes:
        second_moment: Use C. Without it the update's direction is k̄ itself, as the usual settings
            for Llama-3 and Mistral have it.
    """

    value_lr: float = 0.5
    value_decay: float = 1e-3
    clamp: float = 4.0
    second_moment: bool = True


class ROME(LocateEditor):
    """Rank-one model editing."""

    name = "rome"
    checked = {"properties": "test_rome_edits_one_linear_and_needs_moments_only_where_it_uses_them"}
    Config = ROMEConfig
    config: ROMEConfig
    target_modules: ClassVar[TargetModules] = "one_down"
    averaging: ClassVar[Averaging] = "uniform"

    def __init__(self, model: EditableModel, config: ROMEConfig) -> None:
        super().__init__(model, config)
        if len(self.modules) != 1:
            raise ValueError(f"rome edits one linear, not {len(self.modules)}: {self.modules}")
        self.module = self.modules[0]
        self._factor: Factor | None = None

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[Need]:
        """Key covariance only where they are used."""
        return cls.needs if config.second_moment else cls.needs - {"statistics"}

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Write the batch's edits one after another."""
        measurements: list[dict[str, float]] = []
        with fresh_prefix_cache(self.model):
            for request in self.requests(batch):
                values = self.value(request)
                update = self.write(request, values)
                measurements.append(measured(values, [update]))
        worst = {"condition": max, "jitter": max, "realised_cosine": min}
        found: dict[str, float] = {}
        for key in measurements[0]:
            column = [m[key] for m in measurements]
            found[key] = worst[key](column) if key in worst else sum(column) / len(column)
        return found

    def value(self, request: Request, keep_trace: bool = False) -> Values:
        """The value vector of one edit, at the output of the linear."""
        site = LinearOutput(self.model, self.module)
        config = self.config.value_config()
        return optimise_values(self.model, [request], site, config, keep_trace)

    def direction(self, request: Request) -> Tensor:
        """(1, d_in), C⁻¹ k̄ at unit length."""
        keys = subject_keys(self.model, [request], [self.module], self.key_weights)[self.module]
        if self.config.second_moment:
            if self._factor is None:
                self._factor = factorise(self.moment(self.module), self.module)
            keys = self._factor.solve(keys.T).T.to(keys.dtype)
        return keys / keys.norm()

    @torch.no_grad()
    def write(self, request: Request, values: Values) -> LayerUpdate:
        """Add the rank-one update that makes the bare prompt's key give the value."""
        left = self.direction(request)
        seen = observe(self.model, [request.keys[0]], [self.module])
        key, shown = seen.inputs[self.module], seen.outputs[self.module]
        agreement = float((key.double() * left.double()).sum())
        right = (values.targets - shown) / agreement
        if not bool(right.isfinite().all()):
            raise ValueError(
                f"{request.where}: the update of {self.module} is not finite; the key is "
                f"orthogonal to the update's direction (agreement {agreement:.1e})"
            )
        shift = LowRankShift(left, right)
        if self.sphere is not None:
            shift = self.sphere.shift(self.module, shift)
        realised = self.model.weights.add(self.module, shift)
        condition = self._factor.condition if self._factor else 1.0
        jitter = self._factor.jitter if self._factor else 0.0
        return LayerUpdate(
            self.module, key, shown, values.targets - shown, shift, condition, jitter, realised
        )

    def _moments_changed(self) -> None:
        self._factor = None
