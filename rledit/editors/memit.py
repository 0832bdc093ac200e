"""MEMIT: mass editing of several layers by constrained least squares (arXiv 2210.07229).

Δ_l = R_l K_lᵀ (λ C_l + K_l K_lᵀ)⁻¹ with K_l the averaged keys of the batch's subjects, R_l the
layer's share of the residual and C_l the key covariance of the layer's inputs on ordinary text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rledit.editors.base import State
from rledit.editors.locate_editor import LocateConfig, SpreadEditor
from rledit.editors.past_keys import PastKeys
from rledit.lazy_torch import Tensor, torch
from rledit.locate.linear_systems import Factor, factorise, solve_with_keys
from rledit.locate.requests import Request
from rledit.locate.spread import Answer, LayerUpdate
from rledit.model import EditableModel


@dataclass(frozen=True, kw_only=True)
class MEMITConfig(LocateConfig):
    """MEMIT's settings; the defaults are those for Llama-3-8B.

    Attributes:
        moment_weight: λ, weight of the key covariance.
        ridge: λ_n, multiple of the identity added to the system (0: as published).
        past_keys: Also protect the keys of all earlier batches: + K_p K_pᵀ.
    """

    moment_weight: float = 15000.0
    ridge: float = 0.0
    past_keys: bool = False


class MEMIT(SpreadEditor):
    """Mass editing of a transformer's memory."""

    name = "memit"
    checked = {"reference": "test_memit_solves_the_published_system"}
    Config = MEMITConfig
    config: MEMITConfig
    projects_each_layer = False

    def __init__(self, model: EditableModel, config: MEMITConfig) -> None:
        super().__init__(model, config)
        self.past = PastKeys(model, self.modules) if config.past_keys else None
        self._factors: dict[str, Factor] = {}

    def solve(self, name: str, keys: Tensor) -> Answer:
        """(λC + K_pK_pᵀ + λ_n I + KᵀK)⁻¹ Kᵀ in float64.

        The part without the batch's keys is factorised once where it stays the same.
        """
        if name not in self._factors:
            self._factors[name] = factorise(self._protected(name), name)
        factor = self._factors[name]
        left = solve_with_keys(factor, keys).T
        return Answer(left, factor.condition, factor.jitter)

    def after(self, requests: Sequence[Request], updates: Sequence[LayerUpdate]) -> None:
        """Remember the batch's keys."""
        if self.past is not None:
            self.past.add(self.keys_now(requests))
            self._factors.clear()

    def _protected(self, name: str) -> Tensor:
        system = self.config.moment_weight * self.moment(name).double()
        if self.past is not None:
            system += self.past.sums[name]
        if self.config.ridge:
            system += self.config.ridge * torch.eye(len(system)).to(system)
        return system

    def _moments_changed(self) -> None:
        self._factors.clear()

    def state_dict(self) -> State:
        """The past keys, where they are kept."""
        return self.past.state_dict() if self.past is not None else {}

    def load_state_dict(self, state: State) -> None:
        """Put saved past keys back."""
        if self.past is None:
            super().load_state_dict(state)
        else:
            self.past.load_state_dict(state)
            self._factors.clear()
