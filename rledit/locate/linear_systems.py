"""Symmetric positive definite systems, in float64, with jitter and conditioning made visible."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from rledit.lazy_torch import Tensor, torch

logger = logging.getLogger(__name__)

# Beyond this, a float64 solve keeps fewer than four digits.
ILL_CONDITIONED = 1e12


@dataclass(frozen=True, eq=False)
class Factor:
    """Cholesky factor of a system.

    Attributes:
        lower: (d, d) float64.
        condition: Estimate of the condition number, from the factor's diagonal.
        jitter: Multiple of the identity that had to be added (0 as a rule).
    """

    lower: Tensor
    condition: float
    jitter: float

    def solve(self, right_side: Tensor) -> Tensor:
        """X (d, n) float64 of A X = B."""
        return torch.cholesky_solve(right_side.double(), self.lower)


def factorise(system: Tensor, name: str) -> Factor:
    """Factorise a symmetric positive definite matrix with as little jitter as it takes.

    Args:
        system: (d, d).
        name: The layer, for the log and for errors.

    Raises:
        ValueError: The system is singular even with jitter, or holds non-finite values.
    """
    matrix = system.double()
    scale = float(matrix.diagonal().mean())
    eye = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    for jitter in (0.0, 1e-12, 1e-10, 1e-8, 1e-6):
        lower, info = torch.linalg.cholesky_ex(matrix + jitter * scale * eye)
        if int(info) == 0 and bool(lower.isfinite().all()):
            break
    else:
        raise ValueError(
            f"{name}: the system of the update is singular even with jitter {jitter * scale:.1e}; "
            "its key covariance or keys may hold non-finite values, or cover too few tokens"
        )
    diagonal = lower.diagonal()
    condition = float((diagonal.max() / diagonal.min()).square())
    if jitter:
        logger.warning("%s: added jitter %.1e to a singular system", name, jitter * scale)
    if condition > ILL_CONDITIONED:
        logger.warning("%s: ill-conditioned system, condition about %.1e", name, condition)
    else:
        logger.debug("%s: condition about %.1e", name, condition)
    return Factor(lower, condition, jitter * scale)


def solve_with_keys(factor: Factor, keys: Tensor) -> Tensor:
    """(A + KᵀK)⁻¹ Kᵀ given the factor of A, by the Woodbury identity: n x n work per batch.

    Args:
        factor: Factor of A (d, d).
        keys: K (n, d).

    Returns:
        (d, n) float64.
    """
    keys = keys.double()
    spread = factor.solve(keys.T)
    inner = keys @ spread
    eye = torch.eye(len(keys), dtype=torch.float64, device=keys.device)
    return torch.linalg.solve(eye + inner, spread, left=False)
