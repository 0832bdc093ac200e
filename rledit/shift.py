"""The low-rank parameter shift S = Lᵀ R and its two solvers.

The normal equation S = (KᵀK + λI)⁻¹ KᵀD of MALMEN (arXiv 2311.04661, eq. 7) has the exact dual form
S = Kᵀ C with C = (K Kᵀ + λI)⁻¹ D (Woodbury): an n x n solve in place of d_in x d_in. Gram matrix,
Cholesky factor and C are computed in float64, which keeps the shift's error below 1e-5 where
float32 breaks down: outlier dimensions, near-duplicate keys, n > d_in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.ranks import Ranks

logger = logging.getLogger(__name__)

REFINE_ABOVE = 1e6
"""Condition number from which a solution is refined."""


@dataclass(frozen=True, eq=False)
class LowRankShift:
    """A shift S = leftᵀ right of shape (d_in x d_out); add its transpose to ``nn.Linear.weight``.

    Attributes:
        left: (n x d_in), or None for the identity (then right is S itself).
        right: (n x d_out).
    """

    left: Tensor | None
    right: Tensor

    def norm(self) -> Tensor:
        """Frobenius norm of S in n x n work: ‖S‖² = tr(right rightᵀ left leftᵀ). Differentiable."""
        return self.squared_norm().clamp_min(0).sqrt()

    def squared_norm(self) -> Tensor:
        """‖S‖²_F in float64, differentiable."""
        right = self.right.double()
        if self.left is None:
            return right.square().sum()
        left = self.left.double()
        return ((left @ left.T) @ right * right).sum()

    def dense(self) -> Tensor:
        """S (d_in x d_out)."""
        return self.right if self.left is None else self.left.T @ self.right

    def add_to(self, weight: Tensor) -> None:
        """Add Sᵀ to a (d_out x d_in) matrix in place."""
        right = self.right.detach().to(weight.dtype)
        with torch.no_grad():
            if self.left is None:
                weight.add_(right.T)
            else:
                weight.addmm_(right.T, self.left.detach().to(weight.dtype))

    def detached(self, requires_grad: bool = False) -> LowRankShift:
        """The same shift as a leaf of a new graph; gradients collect in its factors."""
        left = self.left
        if left is not None:
            follow = requires_grad and left.requires_grad
            left = left.detach().requires_grad_(follow)
        return LowRankShift(left, self.right.detach().requires_grad_(requires_grad))


Shifts = Mapping[str, LowRankShift]


def sum_gradients(ranks: Ranks, shifts: Shifts) -> None:
    """Sum the gradients that the leaves of shifts have collected over the ranks."""
    if ranks.size == 1:
        return
    factors = (t for s in shifts.values() for t in (s.left, s.right) if t is not None)
    leaves = [t for t in factors if t.requires_grad]
    gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]
    # At once: each sum over ranks waits for all of them.
    flat = torch.cat([g.flatten() for g in gradients])
    ranks.all_reduce_(flat)
    for leaf, whole in zip(leaves, flat.split([t.numel() for t in leaves]), strict=True):
        leaf.grad = whole.view_as(leaf)


@contextmanager
def traced(model: EditableModel, shifts: Shifts, *, input_gradient: bool = True) -> Iterator[None]:
    """Differentiate with respect to shifts that are already merged into the weights.

    The forward is the model's own; only the backward does extra work. Gradients equal those of
    shifts that are added inside the forward, on the weights before the merge.

    Args:
        model: The model, with the shifts merged.
        shifts: Leaves whose `right` (and `left`) collect gradients.
        input_gradient: False leaves the shift out of the gradient that flows on to earlier
            modules. That is what back-propagating through un-edited weights computes: the
            release's locality defect, reproduced for reference.
    """
    from rledit.shift_gradients import Trace

    def trace(shift: LowRankShift) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            traced_output: Tensor = Trace.apply(
                output, args[0], shift.left, shift.right, input_gradient
            )
            return traced_output

        return hook

    with _hooks(model, {name: trace(shift) for name, shift in shifts.items()}):
        yield


@contextmanager
def _hooks(model: EditableModel, hooks: Mapping[str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.callback(model.linear(name).register_forward_hook(hook).remove)
        yield


@dataclass(frozen=True, eq=False)
class Solution:
    """Right factors of the shifts of M modules of one shape, with how hard the solve was.

    Attributes:
        left: (M, n, d_in), or None where the primal form was used.
        right: (M, n, d_out), or (M, d_in, d_out) in the primal form.
        condition: (M,) upper bound of the system's condition number, ‖A + λI‖_∞ / λ.
        jitter: Largest multiple of the identity that had to be added (0 as a rule).
    """

    left: Tensor | None
    right: Tensor
    condition: Tensor
    jitter: float


def solve_normal_equation(
    keys: Tensor, differences: Tensor, ridge: Tensor, name: str = ""
) -> Solution:
    """Shifts S = (KᵀK + λI)⁻¹ KᵀD of M modules at once, by the smaller of the two forms.

    Args:
        keys: K, (M, n, d_in).
        differences: D, (M, n, d_out); may carry a graph.
        ridge: λ, (M,); may carry a graph.
        name: Names the system in error messages.

    Returns:
        The factors, in the precision of `differences`, differentiable in it and in the ridge.

    Raises:
        ValueError: The system stays singular with jitter.
    """
    from rledit.shift_gradients import RidgeSolve

    n, d_in = keys.shape[-2:]
    keys64, differences64 = keys.double(), differences.double()
    primal = n > d_in
    gram = keys64.mT @ keys64 if primal else keys64 @ keys64.mT
    factor, condition, jitter = _factorise(gram, ridge.detach().double(), name)
    root = None
    if (worst := float(condition.max())) > REFINE_ABOVE:
        logger.info("%s: condition up to %.1e, refining", name, worst)
        root = torch.linalg.qr(keys64 if primal else keys64.mT, mode="r").R
    right_side = keys64.mT @ differences64 if primal else differences64
    solution = RidgeSolve.apply(factor, root, ridge.double(), right_side).to(differences.dtype)
    return Solution(None if primal else keys, solution, condition, jitter)


def solve_beside_past(
    keys: Tensor,
    differences: Tensor,
    ridge: Tensor,
    past: Tensor,
    weight: float,
    name: str = "",
) -> Solution:
    """Shifts S = (KᵀK + w P + λI)⁻¹ KᵀD of M modules at once, P the products of earlier keys.

    It is left in factors, S = Lᵀ D with L = K (KᵀK + w P + λI)⁻¹, of which L carries the ridge's
    graph and D its own.

    Args:
        keys: K, (M, n, d_in).
        differences: D, (M, n, d_out); may carry a graph.
        ridge: λ, (M,); may carry a graph.
        past: P = Σ KᵀK of earlier batches, (M, d_in, d_in) in float64.
        weight: w.
        name: Names the system in error messages.

    Raises:
        ValueError: The system stays singular with jitter.
    """
    from rledit.shift_gradients import RidgeSolve

    keys64 = keys.double()
    gram = torch.baddbmm(past, keys64.mT, keys64, beta=weight)
    factor, condition, jitter = _factorise(gram, ridge.detach().double(), name)
    left = RidgeSolve.apply(factor, None, ridge.double(), keys64.mT).mT.to(differences.dtype)
    return Solution(left, differences, condition, jitter)


def _factorise(gram: Tensor, ridge: Tensor, name: str) -> tuple[Tensor, Tensor, float]:
    """Cholesky factor of gram + λI, with as little jitter as it takes; gram becomes that sum.

    Systems as wide as a layer are large: on the way there is one copy of them, the factor.
    """
    system, diagonal = gram, gram.diagonal(dim1=-2, dim2=-1)
    before = diagonal.clone()
    diagonal += ridge[:, None]
    for jitter in (0.0, 1e-12, 1e-10, 1e-8):
        # A GPU is waited for once: what jitter is a share of is asked where there is any.
        added = jitter * float(before.mean()) if jitter else 0.0
        jittered = system
        if jitter:
            jittered = system.clone()
            jittered.diagonal(dim1=-2, dim2=-1).add_(added)
        factor, info = torch.linalg.cholesky_ex(jittered)
        # What is no number in a row of the factor is none on its diagonal.
        if bool((info == 0).all() & factor.diagonal(dim1=-2, dim2=-1).isfinite().all()):
            break
    else:
        raise ValueError(
            f"{name or 'normal equation'}: the system is singular even with jitter "
            f"{added:.1e}; keys may hold non-finite values, or the ridge "
            f"(smallest {float(ridge.min()):.1e}) is too small"
        )
    condition = system.abs().sum(-1).amax(-1) / ridge
    if jitter:
        logger.warning("%s: added jitter %.1e to a singular system", name, added)
    return factor, condition, added
