"""BetaEdit: AlphaEdit that protects ordinary text inside the null space too (arXiv 2605.09285).

Δ = R K₁ᵀ P ((K₁K₁ᵀ + C_p + λ₁ C) P + λ₂ I)⁻¹. The null space is one under a threshold only, so C is
not zero in it, and λ₁ C weighs what is left. C_p = K_pK_pᵀ are the keys of all earlier edits. After
every τ edits P is made anew from (C_p / t + λ₁ C) / (λ₁ + 1), with t the edits so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rledit.editors.alphaedit import AlphaEdit, AlphaEditConfig
from rledit.editors.base import State, prefixed, unprefixed
from rledit.finite import CollapsedError
from rledit.lazy_torch import Tensor, torch
from rledit.locate.nullspace import NullSpace, null_space
from rledit.locate.requests import Request
from rledit.locate.spread import LayerUpdate
from rledit.model import EditableModel
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class BetaEditConfig(AlphaEditConfig):
    """BetaEdit's settings; the defaults are those for Llama-3-8B.

    Attributes:
        ridge: λ₂.
        moment_weight: λ₁, weight of the key covariance inside the null space.
        refresh_every: τ, edits after which the null space is computed anew.
        collapse_norm: The stream stops as collapsed where ‖Δ‖ / √(edits of the batch) of a layer
            is above this. 0: it never does.
    """

    moment_weight: float = 3000.0
    refresh_every: int = 1000
    collapse_norm: float = 20.0


class BetaEdit(AlphaEdit):
    """Null-space constrained editing with regularisation inside, and a null space that follows."""

    name = "betaedit"
    Config = BetaEditConfig
    config: BetaEditConfig
    checked = {"reference": "test_a_stream_equals_the_dense_reference"}
    # It needs the key covariance itself, which a projection does not tell.
    takes_projections = False
    outlives_batch = ("past.", "edits", "projections.", "ranks")

    def __init__(self, model: EditableModel, config: BetaEditConfig) -> None:
        super().__init__(model, config)
        self.n_edits = 0
        self.refreshed_at = 0

    @classmethod
    def more_bytes_of(cls, shape: tuple[int, int]) -> int:
        """Past keys and a projection, beside the key covariance, which stays."""
        return 4 * shape[0] * shape[0]

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Renew the null spaces where they are due, then edit."""
        if self.n_edits - self.refreshed_at >= self.config.refresh_every:
            self._refresh()
        return super().edit(batch)

    def after(self, requests: Sequence[Request], updates: Sequence[LayerUpdate]) -> None:
        """Give up a model that collapses; remember the batch's keys.

        Raises:
            CollapsedError: An update is too large.
        """
        for update in updates:
            self._require_small(update, len(requests))
        # A layer's keys depend on the layers below alone, so these are those before and after.
        self.past.add({update.module: update.keys for update in updates})
        self.n_edits += len(requests)

    def load_projections(self, projections: Mapping[str, NullSpace]) -> None:
        """Refused: λ₁ C cannot be had from a projection."""
        raise ValueError(
            f"editor {self.name!r} needs the key covariance itself, which null-space projections "
            "do not tell; call load_covariance"
        )

    def _require_small(self, update: LayerUpdate, n_edits: int) -> None:
        size, limit = float(update.shift.norm()) / n_edits**0.5, self.config.collapse_norm
        if limit and size > limit:
            raise CollapsedError(
                f"{update.module}: the model has collapsed, as {self.name} sees it: the norm of "
                f"the update over the root of its {n_edits} edits is {size:.3g}, and collapse_norm "
                f"is {limit:g}; take fewer edits or a larger ridge, or go on with collapse_norm 0"
            )

    @torch.no_grad()
    def _refresh(self) -> None:
        """The null space of what past edits and ordinary text need on average."""
        weight = self.config.moment_weight
        for name in self.modules:
            mean = self.past.sums[name].double() / self.n_edits + weight * self._moment(name)
            self._keep(name, (mean / (weight + 1)).to(self.moment(name).dtype))
        self.refreshed_at = self.n_edits

    def _protected(self, name: str) -> Tensor:
        return super()._protected(name) + self.config.moment_weight * self._moment(name)

    def _projection(self, name: str) -> Tensor:
        if name not in self.projections:
            self._keep(name, self.moment(name))
        return self.projections[name]

    def _keep(self, name: str, moment: Tensor) -> None:
        found = null_space(moment, self.config.threshold, name)
        self.projections[name], self.ranks[name] = found.projection, found.rank

    def _moment(self, name: str) -> Tensor:
        return self.moment(name).double()

    def state_dict(self) -> State:
        """Past keys, their number, and the null spaces once they differ from the first."""
        state = super().state_dict()
        counts = (self.n_edits, self.refreshed_at)
        state["edits"] = torch.tensor(counts, dtype=torch.long)
        if self.refreshed_at:
            state |= prefixed("projections.", {k: p.clone() for k, p in self.projections.items()})
            ranks = [self.ranks[name] for name in self.modules]
            state["ranks"] = torch.tensor(ranks, dtype=torch.long)
        return state

    def load_state_dict(self, state: State) -> None:
        """Put a saved state back.

        Raises:
            ValueError: It is of other modules.
        """
        own = {k: v for k, v in state.items() if not k.startswith("past.")}
        expected = {"edits"}
        if any(k.startswith("projections.") for k in own):
            expected |= {"ranks"} | {f"projections.{name}" for name in self.modules}
        if own.keys() != expected:
            raise ValueError(f"a state with {sorted(own)} is none of BetaEdit on {self.modules}")
        super().load_state_dict({k: v for k, v in state.items() if k not in own})
        self.n_edits, self.refreshed_at = state["edits"].tolist()
        self.projections = {
            name: value.to(self.model.device, copy=True)
            for name, value in unprefixed("projections.", own).items()
        }
        ranks = own["ranks"].tolist() if "ranks" in own else []
        self.ranks = dict(zip(self.modules, ranks, strict=bool(ranks)))
