"""DeltaEdit: AlphaEdit whose values keep off what past edits have written (arXiv 2505.07899).

With D = W − W_0 the update accumulated at the highest edited layer, ‖D k‖ is what past edits add to
an edit's output by interference. Where it departs from its running mean by more than so many
deviations, δ is projected after every Adam step onto the complement of the leading left singular
vectors of D: δ ← δ − U Uᵀ δ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rledit.editors.alphaedit import AlphaEdit, AlphaEditConfig
from rledit.editors.base import State
from rledit.lazy_torch import Tensor, torch
from rledit.locate.keys import observe
from rledit.locate.requests import Request
from rledit.locate.value import Confinement
from rledit.model import EditableModel
from rledit.tokenization import EditBatch

FORGETTING = 0.1
"""Weight of the newest edit in the running mean and variance of the interference."""


@dataclass(frozen=True, kw_only=True)
class DeltaEditConfig(AlphaEditConfig):
    """DeltaEdit's settings; the defaults are those for Llama-3-8B.

    Attributes:
        deviations: Standard deviations from the running mean beyond which an edit is projected.
        settling_edits: Edits at the start of the stream of which none is projected.
        space_share: Largest share of the dimensions of δ that is projected off.
        space_floor: Directions are projected off whose squared singular value is above this.
    """

    deviations: float = 1.5
    settling_edits: int = 20
    space_share: float = 0.25
    space_floor: float = 0.1


class DeltaEdit(AlphaEdit):
    """Null-space constrained editing with control of what edits add to each other's output."""

    name = "deltaedit"
    Config = DeltaEditConfig
    config: DeltaEditConfig
    checked = {"reference": "test_a_stream_equals_the_dense_reference"}

    def __init__(self, model: EditableModel, config: DeltaEditConfig) -> None:
        super().__init__(model, config)
        self.n_edits = 0
        self.interference = RunningSpread()
        self._n_projected = 0

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Edit, and tell how many edits of the batch were projected."""
        metrics = super().edit(batch)
        return metrics | {"projected_edits": float(self._n_projected)}

    @torch.no_grad()
    def confinement(self, requests: Sequence[Request]) -> Confinement | None:
        """Which edits are projected off which directions; the running mean goes on."""
        name = self.modules[-1]
        weights = self.model.weights
        written = weights.read(name).double() - weights.original(name).double()
        outlying = torch.zeros(len(requests), dtype=torch.bool)
        if bool(written.any()):
            keys = observe(self.model, [r.keys[0] for r in requests], [name]).inputs[name]
            for i, norm in enumerate((keys.double() @ written.T).norm(dim=-1).tolist()):
                settled = self.n_edits + i >= self.config.settling_edits
                outlying[i] = settled and self.interference.departs(norm, self.config.deviations)
                if not outlying[i]:
                    self.interference.update(norm)
        self.n_edits += len(requests)
        self._n_projected = int(outlying.sum())
        if not self._n_projected:
            return None
        space = leading_space(written, self.config.space_share, self.config.space_floor)
        return Confinement(space, outlying)

    def state_dict(self) -> State:
        """Past keys, the number of edits, and the running mean and variance."""
        moments = (float(self.n_edits), self.interference.mean, self.interference.variance)
        begun = float(self.interference.begun)
        own = {"interference": torch.tensor((*moments, begun), dtype=torch.float64)}
        return super().state_dict() | own

    def load_state_dict(self, state: State) -> None:
        """Put a saved state back.

        Raises:
            ValueError: It is of other modules, or has no running mean.
        """
        if "interference" not in state:
            raise ValueError(f"a state with {sorted(state)} is none of DeltaEdit")
        super().load_state_dict({k: v for k, v in state.items() if k != "interference"})
        count, mean, variance, begun = state["interference"].tolist()
        self.n_edits = int(count)
        self.interference = RunningSpread(mean, variance, bool(begun))


@dataclass
class RunningSpread:
    """Mean and variance of a number that forget exponentially; those that depart are left out."""

    mean: float = 0.0
    variance: float = 0.0
    begun: bool = False

    def departs(self, value: float, deviations: float) -> bool:
        """Whether a number lies more than so many standard deviations from the mean."""
        return self.variance > 0 and abs(value - self.mean) > deviations * self.variance**0.5

    def update(self, value: float) -> None:
        """Take a number in; the first one is the mean."""
        if not self.begun:
            self.mean, self.begun = value, True
        self.mean += FORGETTING * (value - self.mean)
        distance = (value - self.mean) ** 2
        self.variance += FORGETTING * (distance - self.variance)


def leading_space(matrix: Tensor, share: float, floor: float) -> Tensor:
    """Leading left singular vectors of a matrix.

    Args:
        matrix: (d, n).
        share: Largest share of d that is taken.
        floor: Vectors are taken whose squared singular value is above this.

    Returns:
        (d, r) float64, orthonormal.
    """
    matrix = matrix.double()
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    count = min(int((values > floor).sum()), int(share * len(values)))
    return vectors[:, len(values) - count :]
