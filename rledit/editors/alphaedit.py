"""AlphaEdit: updates confined to the null space of preserved keys (arXiv 2410.02355).

Δ = R K₁ᵀ P (K_pK_pᵀ P + K₁K₁ᵀ P + λ I)⁻¹ with P = U Uᵀ over the eigenvectors of C under a threshold
and K_p the keys of all earlier edits. As P is a projection, the same Δ is R K₁ᵀ P A⁻¹ with the
symmetric positive definite A = P (K_pK_pᵀ + K₁K₁ᵀ) P + λ I, which is what is solved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rledit.editors.base import State
from rledit.editors.locate_editor import LocateConfig, SpreadEditor
from rledit.editors.past_keys import PastKeys
from rledit.families import layer_index
from rledit.lazy_torch import Tensor
from rledit.locate.covariance import CovarianceError
from rledit.locate.linear_systems import factorise
from rledit.locate.nullspace import NullSpace, null_space
from rledit.locate.requests import Request
from rledit.locate.spread import Answer, LayerUpdate
from rledit.model import EditableModel
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class AlphaEditConfig(LocateConfig):
    """AlphaEdit's settings; the defaults are those for Llama-3-8B.

    Attributes:
        threshold: τ; eigenvalues of the unnormalised key covariance under it count as zero.
        ridge: λ.
    """

    threshold: float = 0.02
    ridge: float = 10.0


class AlphaEdit(SpreadEditor):
    """Null-space constrained editing."""

    name = "alphaedit"
    checked = {"reference": "test_alphaedit_solves_the_published_system"}
    Config = AlphaEditConfig
    config: AlphaEditConfig
    takes_projections = True

    def __init__(self, model: EditableModel, config: AlphaEditConfig) -> None:
        super().__init__(model, config)
        self.past = PastKeys(model, self.modules)
        self.projections: dict[str, Tensor] = {}
        self.ranks: dict[str, int] = {}

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Edit, and tell the rank of each layer's null space."""
        metrics = super().edit(batch)
        for name in self.modules:
            layer = layer_index(self.model.family, name)
            metrics[f"null_space_rank_{layer}"] = float(self.ranks[name])
        return metrics

    def solve(self, name: str, keys: Tensor) -> Answer:
        """A⁻¹ P Kᵀ in float64."""
        projection = self._projection(name).double()
        keys = keys.double() @ projection
        system = keys.T @ keys + projection @ self._protected(name) @ projection
        system.diagonal().add_(self.config.ridge)
        factor = factorise(system, name)
        return Answer(factor.solve(keys.T).T, factor.condition, factor.jitter)

    def after(self, requests: Sequence[Request], updates: Sequence[LayerUpdate]) -> None:
        """Remember the batch's keys."""
        self.past.add(self.keys_now(requests))

    def load_projections(self, projections: Mapping[str, NullSpace]) -> None:
        """Take P of every target module as it is; the threshold was its maker's."""
        for name in self.modules:
            if name not in projections:
                raise CovarianceError(
                    f"no projection of {name!r} was given; there are {sorted(projections)}"
                )
            given, width = projections[name], self.model.shape(name)[0]
            if given.projection.shape != (width, width):
                raise CovarianceError(
                    f"projection of {name!r}: {len(given.projection)} features, the linear has "
                    f"{width} inputs; it belongs to another model"
                )
            self.projections[name] = given.projection.to(self.model.device)
            self.ranks[name] = given.rank

    def _protected(self, name: str) -> Tensor:
        """What stands inside the projection beside the batch's keys, float64."""
        return self.past.sums[name].double()

    def _projection(self, name: str) -> Tensor:
        if name not in self.projections:
            found = null_space(self.moment(name), self.config.threshold, name)
            self.projections[name] = found.projection
            self.ranks[name] = found.rank
            # The moment itself is not needed any more; it is as large as the projection.
            del self.covariances[name]
        return self.projections[name]

    def _moments_changed(self) -> None:
        self.projections.clear()

    def state_dict(self) -> State:
        """The past keys."""
        return self.past.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Put saved past keys back."""
        self.past.load_state_dict(state)
