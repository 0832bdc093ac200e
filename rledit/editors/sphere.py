"""SPHERE: a projection behind an editor's update (arXiv 2510.01172).

With Ŵ the rows of W_0 scaled to norm 1 and U (d_in × r) the leading eigenvectors of ŴᵀŴ, as many as
hold at most a share of its trace, plus one, a batch's update ΔW becomes ΔW (I − α U Uᵀ). Every
editor whose update is a matrix takes it as settings, so that a grid has the method with it and
without it side by side. U is a function of the unedited matrix alone: nothing is kept along a
stream.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rledit.editors.choices import check_choices
from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.shift import LowRankShift, Solution
from rledit.step_size import SettingError
from rledit.weights import EditedWeights

logger = logging.getLogger(__name__)

SHARE = 0.5
SPHERE_OFF: Mapping[str, float] = {"sphere_alpha": 0.0, "sphere_share": SHARE}
"""Settings of an editor as it is without SPHERE: these are known without."""


@dataclass(frozen=True, kw_only=True)
class SphereSettings:
    """SPHERE behind an editor's update, off unless asked for.

    Attributes:
        sphere_alpha: α of SPHERE: how much of a batch's update is taken away along the leading
            directions of the unedited matrix's rows. 0: none. Published: 0.5 behind AlphaEdit, 0.8
            behind MEMIT, PRUNE and RECT.
        sphere_share: Share of those rows' energy that the leading directions hold at most, before
            one more is added.
    """

    sphere_alpha: float = 0.0
    sphere_share: float = SHARE

    younger: ClassVar[Mapping[str, Any]] = SPHERE_OFF
    """See `HypernetworkConfig.younger`."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_sphere(self)


def check_sphere(config: SphereSettings) -> None:
    """Refuse shares that are none, and directions that nothing is taken away along.

    Raises:
        SettingError: Says which setting.
    """
    for name in SPHERE_OFF:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise SettingError(name, f"expected a number from 0 to 1, found {value}")
    if not config.sphere_alpha and config.sphere_share != SHARE:
        raise SettingError(
            "sphere_share",
            "sphere_alpha 0 takes nothing away from an update; set sphere_alpha above 0, or leave "
            "sphere_share out",
        )


class Sphere:
    """Takes a share of updates away along the leading directions of the unedited matrices' rows.

    Args:
        model: The model; only its original matrices are read.
        alpha: α, the share that is taken away.
        share: Share of the rows' energy that the directions hold.
    """

    def __init__(self, model: EditableModel, alpha: float, share: float) -> None:
        self._weights, self._kind = model.weights, model.compute_dtype
        self.alpha = alpha
        self._share = share
        self._found: dict[str, Tensor] = {}

    def directions(self, name: str) -> Tensor:
        """U (d_in, r) of a target module, orthonormal; found once."""
        if name not in self._found:
            original = self._weights.original(name)
            found = leading_directions(original, self._share)
            logger.info("%s: SPHERE has %d of %d directions", name, *found.T.shape)
            self._found[name] = found.to(self._kind)
        return self._found[name]

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Rows (n, d_in) of an update, or of the left factor of one, times I − α U Uᵀ."""
        basis = self.directions(name).to(rows.dtype)
        return rows - self.alpha * (rows @ basis) @ basis.T

    def shift(self, name: str, shift: LowRankShift) -> LowRankShift:
        """A shift as it is added; its factors are projected, so that its rank does not grow."""
        if shift.left is None:
            return LowRankShift(None, self.rows(name, shift.right.T).T)
        return LowRankShift(self.rows(name, shift.left), shift.right)

    def solution(self, names: Sequence[str], solution: Solution) -> Solution:
        """The factors of the shifts of modules of one shape, differentiable as they were."""
        shifts = [
            self.shift(name, LowRankShift(None if solution.left is None else solution.left[j], r))
            for j, (name, r) in enumerate(zip(names, solution.right, strict=True))
        ]
        if solution.left is None:
            return replace(solution, right=torch.stack([s.right for s in shifts]))
        return replace(solution, left=torch.stack([s.left for s in shifts if s.left is not None]))

    @torch.no_grad()
    def confine(self, weights: EditedWeights, before: Mapping[str, Tensor]) -> None:
        """Project what matrices have changed since they were those of `before`."""
        for name, start in before.items():
            weights.set(name, start + self.rows(name, weights.read(name) - start))


def sphere_of(model: EditableModel, config: Any) -> Sphere | None:
    """The projection that a configuration asks for; None where it asks for none."""
    alpha = getattr(config, "sphere_alpha", 0.0)
    return Sphere(model, alpha, config.sphere_share) if alpha else None


@torch.no_grad()
def leading_directions(weight: Tensor, share: float) -> Tensor:
    """Leading right singular vectors of a matrix whose rows are scaled to norm 1.

    They come from the Gram matrix of the smaller side, in float64: for the `down` of Llama-3-8B
    that is 4,096 wide in place of 14,336.

    Args:
        weight: W_0 (d_out, d_in).
        share: Share of the energy ‖Ŵ‖² that they hold at most, before one more is added.

    Returns:
        (d_in, r) in float64, columns orthonormal; r is at most the rank of Ŵ.
    """
    rows = weight.double()
    lengths = rows.norm(dim=1, keepdim=True)
    rows = torch.where(lengths > 0, rows / lengths.where(lengths > 0, 1.0), 0.0)
    wide = rows.shape[0] <= rows.shape[1]
    energies, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    energies, vectors = energies.flip(0).clamp_min(0), vectors.flip(1)
    held = energies.cumsum(0) / energies.sum()
    rank = int((energies > energies[0] * len(energies) * torch.finfo(energies.dtype).eps).sum())
    count = min(int((held <= share).sum()) + 1, rank)
    leading = vectors[:, :count]
    return rows.T @ leading / energies[:count].sqrt() if wide else leading
