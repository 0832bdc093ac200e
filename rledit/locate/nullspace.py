"""Projection onto the directions that ordinary text hardly uses (AlphaEdit, arXiv 2410.02355)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from rledit.lazy_torch import Tensor, torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class NullSpace:
    """P = U Uᵀ over the eigenvectors of C whose eigenvalue is under a threshold.

    Attributes:
        projection: P (d_in, d_in), in the moment's precision.
        rank: Number of eigenvectors kept.
    """

    projection: Tensor
    rank: int


def null_space(moment: Tensor, threshold: float, name: str) -> NullSpace:
    """The null-space projection of a key covariance.

    Args:
        moment: C (d_in, d_in), not normalised: the threshold is absolute.
        threshold: τ; eigenvalues strictly under it count as zero.
        name: The layer, for the log and for errors.

    Raises:
        ValueError: No eigenvalue is under the threshold, so that nothing could be edited.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    kept = values < threshold
    rank = int(kept.sum())
    if rank == 0:
        raise ValueError(
            f"{name}: no eigenvalue of the key covariance is under {threshold:g} (smallest "
            f"{float(values[0]):.2e}), so the null space is empty; raise the threshold"
        )
    above = f"{float(values[rank]):.3e}" if rank < len(values) else "none"
    logger.info(
        "%s: null space of rank %d of %d under %g (eigenvalues around it: %.3e, %s)",
        name,
        rank,
        len(values),
        threshold,
        float(values[rank - 1]),
        above,
    )
    basis = vectors[:, kept]
    return NullSpace((basis @ basis.T).to(moment.dtype), rank)
