"""PRUNE: MEMIT, with the singular values of the total update restrained (arXiv 2405.16821).

With D = U diag(σ) Vᵀ the sum of all updates so far, the model is W_0 + F(D), where F replaces each
σ above σ_max(W_0) by log_α σ − log_α σ_max + σ_max. Edits follow one another on the unrestrained
W_0 + D; the restraint is put on after each batch and taken off before the next, so the model after
k batches is the one that a stream of k batches ends with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rledit.editors.base import State, prefixed, unprefixed
from rledit.editors.finetuning import moved
from rledit.editors.memit import MEMIT, MEMITConfig
from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class PRUNEConfig(MEMITConfig):
    """PRUNE's settings.

    Attributes:
        log_base: α; the paper uses e, 2, 1.5 and 1.2.
        variant: `published` gives W_0 + F(D). `release` repeats the common release, which adds
            F(D) to the weight that already holds D: W_0 + D + F(D).
    """

    log_base: float = math.e
    variant: Literal["published", "release"] = "published"


class PRUNE(MEMIT):
    """Sequential editing with a bounded condition number."""

    name = "prune"
    checked = {"properties": "test_prune_restrains_what_memit_writes"}
    Config = PRUNEConfig
    config: PRUNEConfig

    def __init__(self, model: EditableModel, config: PRUNEConfig) -> None:
        super().__init__(model, config)
        if config.log_base <= 1:
            raise ValueError(f"log_base must be above 1, not {config.log_base}")
        self._unrestrained: State = {}
        self._limits: dict[str, float] = {}

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Edit without restraint, then put it on; ``shift_norm`` is of the change with it."""
        weights = self.model.weights
        before = {name: weights.read(name).clone() for name in self.modules}
        for name, value in self._unrestrained.items():
            weights.set(name, value)
        metrics = super().edit(batch)
        self._unrestrained = weights.state_dict()
        restrained = 0
        for name in self.modules:
            restrained += self._restrain(name)
        after = {name: weights.read(name) for name in self.modules}
        return metrics | {"shift_norm": moved(before, after), "restrained": float(restrained)}

    @torch.no_grad()
    def _restrain(self, name: str) -> int:
        weights = self.model.weights
        current = self._unrestrained[name]
        original = weights.original(name).to(current.dtype)
        if name not in self._limits:
            self._limits[name] = float(singular_values(original)[-1])
        total = current - original
        cut, count = restrained(total, self._limits[name], self.config.log_base)
        base = original if self.config.variant == "published" else current
        if count or self.config.variant == "release":
            weights.set(name, base + cut)
        return count

    def state_dict(self) -> State:
        """The unrestrained matrices."""
        own = {name: value.clone() for name, value in self._unrestrained.items()}
        return super().state_dict() | prefixed("unrestrained.", own)

    def load_state_dict(self, state: State) -> None:
        """Put saved unrestrained matrices back."""
        own = unprefixed("unrestrained.", state)
        if own and set(own) != set(self.modules):
            raise ValueError(f"a state of {sorted(own)} is none of {sorted(self.modules)}")
        super().load_state_dict(
            {k: v for k, v in state.items() if not k.startswith("unrestrained.")}
        )
        self._unrestrained = {name: value.clone() for name, value in own.items()}


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values in ascending order, float64."""
    return _gram(matrix)[0]


def restrained(update: Tensor, limit: float, base: float) -> tuple[Tensor, int]:
    """F(D): singular values above a limit grow only logarithmically beyond it.

    Args:
        update: D (d_out, d_in).
        limit: σ_max of the unedited matrix.
        base: α.

    Returns:
        F(D), and the number of singular values that were above the limit.
    """
    values, left = _gram(update)
    large = values > limit
    if not bool(large.any()):
        return update, 0
    found = values[large]
    scale = ((found / limit).log() / math.log(base) + limit) / found - 1.0
    basis = left[:, large]
    # D + U diag(F(σ)/σ − 1) Uᵀ D touches the large ones only.
    if update.shape[0] <= update.shape[1]:
        change = (basis * scale) @ (basis.T @ update.double())
    else:
        change = (update.double() @ basis * scale) @ basis.T
    return update + change.to(update.dtype), int(large.sum())


def _gram(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, ascending, and singular vectors of the smaller side, in float64."""
    wide = matrix.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp_min(0).sqrt(), vectors
