"""RECT: MEMIT, keeping only the entries that change most relative to the weight (2401.04700)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rledit.editors.memit import MEMIT, MEMITConfig
from rledit.lazy_torch import Tensor, torch
from rledit.locate.requests import Request
from rledit.locate.spread import LayerUpdate
from rledit.locate.value import Values
from rledit.model import EditableModel
from rledit.shift import LowRankShift


@dataclass(frozen=True, kw_only=True)
class RECTConfig(MEMITConfig):
    """RECT's settings.

    Attributes:
        keep: Share of the entries of each update that is kept.
    """

    keep: float = 0.4


class RECT(MEMIT):
    """Regularisation of the edited weights by relative change."""

    name = "rect"
    checked = {"properties": "test_the_largest_relative_changes_are_kept"}
    Config = RECTConfig
    config: RECTConfig

    def __init__(self, model: EditableModel, config: RECTConfig) -> None:
        super().__init__(model, config)
        if not 0 < config.keep <= 1:
            raise ValueError(f"keep must lie above 0 and not above 1, not {config.keep}")

    @torch.no_grad()
    def write(self, requests: Sequence[Request], values: Values) -> list[LayerUpdate]:
        """Spread as MEMIT does, each layer seeing the whole updates of those below, then cut."""
        weights = self.model.weights
        precision = self.model.compute_dtype  # a first batch finds them as the model has them
        before = {name: weights.read(name).to(precision, copy=True) for name in self.modules}
        return self.cut(self.spread(requests, values), before)

    def cut(
        self, updates: Sequence[LayerUpdate], before: Mapping[str, Tensor]
    ) -> list[LayerUpdate]:
        """Put what is kept of updates in the place of those that were added to `before`."""
        weights = self.model.weights
        written: list[LayerUpdate] = []
        for update in updates:
            weight = before[update.module]
            change = update.shift.dense().T.to(weight.dtype)
            mask = largest_relative(change, weight, self.config.keep)
            kept = torch.where(mask, change, 0.0)
            if self.sphere is not None:
                kept = self.sphere.rows(update.module, kept)
            weights.set(update.module, weight)
            shift = LowRankShift(None, kept.T)
            realised = weights.add(update.module, shift)
            written.append(replace(update, shift=shift, realised=realised))
        return written


def largest_relative(change: Tensor, weight: Tensor, keep: float) -> Tensor:
    """Where |ΔW / W| is among its largest entries.

    Args:
        change: ΔW.
        weight: W, of the same shape.
        keep: Share of entries to keep; ties at the boundary are kept too.

    Returns:
        Mask of the same shape.
    """
    ratio = (change / (weight + 1e-8)).abs()
    rank = max(1, int(ratio.numel() * (1 - keep)))
    threshold = ratio.flatten().kthvalue(rank).values
    return ratio >= threshold
