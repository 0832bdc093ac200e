"""Directions of a matrix in which the loss on ordinary text hardly curves (CrispEdit,
arXiv 2602.15823).

With A = E[k kᵀ] of a linear's inputs and B = E[g gᵀ] of its output gradients, B ⊗ A stands for the
curvature of the loss in the linear's matrix. Its eigenvalues are the products b_j a_i, along
u_j^B (u_i^A)ᵀ. The largest of them, which together hold a share γ of the trace, are steep.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from rledit.lazy_torch import Tensor, torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FlatDirections:
    """The directions of a (d_out × d_in) matrix along which it may change.

    Attributes:
        inputs: U_A (d_in, d_in), eigenvectors of A as columns.
        outputs: U_B (d_out, d_out), those of B.
        flat: (d_out, d_in) bool, b_j a_i < θ.
        threshold: θ.
    """

    inputs: Tensor
    outputs: Tensor
    flat: Tensor
    threshold: float

    @property
    def share(self) -> float:
        """Share of all directions that are flat."""
        return float(self.flat.sum()) / self.flat.numel()

    def __call__(self, change: Tensor) -> Tensor:
        """U_B [(U_Bᵀ X U_A) ⊙ flat] U_Aᵀ: the part of a change X (d_out, d_in) that is flat."""
        along = self.outputs.T @ change.to(self.outputs) @ self.inputs
        return (self.outputs @ along.mul_(self.flat) @ self.inputs.T).to(change)


def flat_directions(
    keys: Tensor, gradients: Tensor, energy: float, name: str, dtype: torch.dtype
) -> FlatDirections:
    """The flat directions of a linear's matrix.

    Args:
        keys: A (d_in, d_in).
        gradients: B (d_out, d_out). Neither's scale matters.
        energy: γ in [0, 1], the share of the trace that steep directions hold. At 0 the steepest
            one is left out all the same; at 1 all with any curvature are.
        name: The linear, for the log and for errors.
        dtype: Precision of the eigenvectors that changes are projected with.

    Raises:
        ValueError: A or B is zero, so that no direction is steeper than another.
    """
    a, inputs = torch.linalg.eigh(keys.double())
    b, outputs = torch.linalg.eigh(gradients.double())
    products = torch.outer(b.clamp(min=0), a.clamp(min=0))
    ordered = products.flatten().sort(descending=True).values
    if not float(ordered[0]) > 0:
        raise ValueError(
            f"{name}: the covariance of its {'inputs' if not float(a[-1]) > 0 else 'gradients'} is "
            "zero, so the loss has no curvature to stay clear of; take more text"
        )
    running = ordered.cumsum(0)
    # By the running sum the last of them could not be told from the one before.
    some = int((ordered > 0).sum())
    place = int(torch.searchsorted(running, energy * running[-1])) if energy < 1 else some
    threshold = float(ordered[min(place, some - 1)])
    found = FlatDirections(inputs.to(dtype), outputs.to(dtype), products < threshold, threshold)
    logger.info(
        "%s: %.2f %% of %d directions are flat: %.4g of the curvature lies in the others (θ %.3e)",
        name,
        100 * found.share,
        len(ordered),
        energy,
        threshold,
    )
    return found
