"""LyapLock: MEMIT that remembers past edits and is pulled back to W_0 (arXiv 2505.15702).

Δ = [R K₁ᵀ + qλ(W_0 − W) C + (P_v − W P_k)] (K₁K₁ᵀ + qλ C + P_k)⁻¹, with W the weight before the
batch and, over all earlier edits, P_k = Σ k kᵀ and P_v = Σ (W_t k) kᵀ with the weight W_t right
after each: what the weight has drifted from, on ordinary text and on past edits, is put back.

How strongly text is protected follows from how much of a budget is used up. With the preservation
loss PL = tr((W − W_0) C (W − W_0)ᵀ) and the budget D, a multiple of PL after the first batch, a
virtual queue grows while PL is above D: q ← max(q + PL/D − 1, 1), from q = 1, for each layer.

The release has three moment files, for W_0 C = E[v kᵀ] and E[v vᵀ] beside C; without a bias these
follow from W_0 and C. Here k ↦ W k has no bias in any family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rledit.editors.base import State, prefixed, unprefixed
from rledit.editors.locate_editor import LocateConfig, SpreadEditor
from rledit.editors.past_keys import PastKeys
from rledit.families import layer_index
from rledit.lazy_torch import Tensor, torch
from rledit.locate.linear_systems import factorise
from rledit.locate.requests import Request
from rledit.locate.spread import Answer, LayerUpdate
from rledit.model import EditableModel
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class LyapLockConfig(LocateConfig):
    """LyapLock's settings; the defaults are those for Llama-3-8B.

    Attributes:
        moment_weight: λ, weight of the key covariance while q is 1.
        drift_budget: Preservation loss that is let pass, in multiples of that after the first
            batch.
    """

    moment_weight: float = 1000.0
    drift_budget: float = 60.0


class LyapLock(SpreadEditor):
    """Sequential editing under a long-term constraint on preservation."""

    name = "lyaplock"
    Config = LyapLockConfig
    config: LyapLockConfig
    checked = {"reference": "test_a_stream_equals_the_dense_reference"}
    # Past outputs would write again what was taken back, and past keys alone have no target.
    outlives_batch = ()

    def __init__(self, model: EditableModel, config: LyapLockConfig) -> None:
        super().__init__(model, config)
        self.past = PastKeys(model, self.modules, torch.float64)
        self.outputs = {
            name: torch.zeros(*reversed(model.shape(name)), dtype=torch.float64).to(model.device)
            for name in self.modules
        }
        """P_v (d_out, d_in) of each module."""
        self.pressure = dict.fromkeys(self.modules, 1.0)
        """q of each module."""
        self.budget = dict.fromkeys(self.modules, 0.0)
        """D of each module; 0 as long as nothing has moved it."""
        self._losses: dict[str, float] = {}

    @classmethod
    def more_bytes_of(cls, shape: tuple[int, int]) -> int:
        """Past keys and outputs are in float64."""
        d_in, d_out = shape
        return 4 * d_in * d_in + 8 * d_in * d_out

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Edit, and tell each layer's preservation loss and the weight q that follows from it."""
        metrics = super().edit(batch)
        for name in self.modules:
            layer = layer_index(self.model.family, name)
            metrics[f"preservation_loss_{layer}"] = self._losses[name]
            metrics[f"preservation_weight_{layer}"] = self.pressure[name]
        return metrics

    def solve(self, name: str, keys: Tensor) -> Answer:
        """M⁻¹ Kᵀ, and the pull back by the same M, in float64.

        q changes with every batch, so that nothing of M can be factorised once for all.
        """
        moment = self.moment(name).double() * (self.pressure[name] * self.config.moment_weight)
        pull = self.outputs[name] - self._weight(name) @ self.past.sums[name]
        pull -= self._change(name) @ moment
        keys = keys.double()
        factor = factorise(moment.add_(self.past.sums[name]).addmm_(keys.T, keys), name)
        left = factor.solve(keys.T).T
        # Nothing has drifted before the first batch, and there is nothing to solve for.
        back = factor.solve(pull.T) if bool(pull.any()) else None
        return Answer(left, factor.condition, factor.jitter, back)

    def after(self, requests: Sequence[Request], updates: Sequence[LayerUpdate]) -> None:
        """Remember what the batch's keys give now, and weigh preservation anew."""
        # A layer's keys depend on the layers below alone, which were written first.
        keys = {update.module: update.keys for update in updates}
        self.past.add(keys)
        for name, rows in keys.items():
            rows = rows.double()
            self.outputs[name].addmm_((rows @ self._weight(name).T).T, rows)
            self._weigh(name)

    def preservation_loss(self, name: str) -> float:
        """PL = tr((W − W_0) C (W − W_0)ᵀ), the mean square by which ordinary outputs have moved."""
        change = self._change(name)
        return float((change @ self.moment(name).double()).mul_(change).sum())

    def _weigh(self, name: str) -> None:
        loss = self._losses[name] = self.preservation_loss(name)
        if not self.budget[name]:
            self.budget[name] = self.config.drift_budget * loss
        if self.budget[name]:
            self.pressure[name] = max(self.pressure[name] + loss / self.budget[name] - 1, 1.0)

    def _weight(self, name: str) -> Tensor:
        return self.model.weights.read(name).double()

    def _change(self, name: str) -> Tensor:
        return self._weight(name) - self.model.weights.original(name).double()

    def state_dict(self) -> State:
        """Past keys and outputs, and each layer's q and D."""
        state = self.past.state_dict()
        state |= prefixed("outputs.", {name: p.clone() for name, p in self.outputs.items()})
        for name in self.modules:
            pair = (self.pressure[name], self.budget[name])
            state[f"queue.{name}"] = torch.tensor(pair, dtype=torch.float64)
        return state

    def load_state_dict(self, state: State) -> None:
        """Put a saved state back.

        Raises:
            ValueError: It is of other modules.
        """
        parts = ("past", "outputs", "queue")
        if state.keys() != {f"{part}.{name}" for part in parts for name in self.modules}:
            raise ValueError(f"a state with {sorted(state)} is none of LyapLock on {self.modules}")
        self.past.load_state_dict({k: v for k, v in state.items() if k.startswith("past.")})
        for name, value in unprefixed("outputs.", state).items():
            self.outputs[name] = value.to(self.outputs[name]).clone()
        for name, pair in unprefixed("queue.", state).items():
            self.pressure[name], self.budget[name] = pair.tolist()
