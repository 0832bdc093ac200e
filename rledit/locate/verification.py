"""Checks of key covariance and projections that others have made, before an editor uses them.

What a file is called proves nothing. It is looked at by itself (shape, symmetry, spectrum, count),
and against this model: the inputs of the linear it is said to be of are summed over a sample of
text, and so are those of every other linear of that width, of which the one that is named has to
fit best. That tells layers and models apart; a model from its fine-tuned kin it may not.

All thresholds are ours and stand here. They were set on SmolLM2-135M, whose 30 linears have one
width: see docs/methods.md for what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rledit.locate.covariance import CovarianceError, KeyCovariance, accumulate
from rledit.model import EditableModel

ASYMMETRY = 1e-4
"""Largest |C − Cᵀ| or |P − Pᵀ|, relative to the largest entry."""
NEGATIVE = 1e-4
"""The smallest eigenvalue may be below zero by this part of the largest."""
TOKENS_PER_DOCUMENT = 2.0
"""Fewer tokens than this a document and the count is one of documents."""
MEAN_DIAGONAL = 0.25
"""How far the mean of the diagonal may be from the sample's, relatively."""
LOG_DIAGONAL = 0.9
"""Least correlation of the logarithms of the diagonals."""
EIGENVECTOR = 0.95
"""Least |cosine| of the leading eigenvectors."""
NOT_IDEMPOTENT = 1e-3
"""Largest |P² − P|."""
TRACE = 0.5
"""How far the trace of a projection may be from its rank."""
NULL_ENERGY = 0.5
"""Most energy a projection may leave a sample's inputs per direction, over that of all."""
_TIE = 1e-6  # linears with the same inputs, such as gate and up, fit equally well


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number that a file was checked by.

    Attributes:
        name: What the number is.
        value: The number.
        bound: What was asked of it.
        passed: Whether it is so.
    """

    name: str
    value: float
    bound: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.6g}, expected {self.bound}"


class RowSketch:
    """Sums over the inputs of one linear that compare it with a file without a matrix of its own.

    Args:
        reference: A vector v (d_in), of which C v is kept; or a projection P (d_in, d_in), of
            which the energy of P k is.
        full: A moment to sum as well.
    """

    def __init__(self, reference: Tensor, full: KeyCovariance | None = None) -> None:
        self._reference = reference
        self._full = full
        self.squares = torch.zeros(len(reference), dtype=torch.float64, device=reference.device)
        self.along = torch.zeros_like(self.squares)
        self.kept = torch.zeros((), dtype=torch.float64, device=reference.device)
        self.count = 0

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Add rows (n, d_in)."""
        if self._full is not None:
            self._full.update(rows)
        rows = rows.to(self._reference)
        products = rows @ self._reference
        self.kept += products.double().square().sum()
        if products.ndim == 1:
            self.along += (rows.T @ products).double()
        self.squares += rows.double().square().sum(0)
        self.count += len(rows)

    @property
    def finite(self) -> bool:
        """Whether every input so far was a number."""
        return bool(self.squares.isfinite().all())

    @property
    def diagonal(self) -> Tensor:
        """E[k²] (d_in) of each input."""
        return self.squares / max(self.count, 1)


def check_sum(
    total: Tensor, count: int, documents: int | None, width: int, window: int | None
) -> list[Check]:
    """What a sum of k kᵀ shows by itself.

    Args:
        total: Σ k kᵀ.
        count: Tokens.
        documents: Documents, where the file says so.
        width: d_in of the linear it is said to be of.
        window: Tokens that the model takes; None where it does not say.
    """
    if problem := _shape_problem(total, width):
        return [problem]
    values = torch.linalg.eigvalsh(total.double())
    least, largest = float(values[0]), float(values[-1])
    found = [
        _asymmetry(total),
        _at_least("smallest eigenvalue over the largest", least / (largest or 1.0), -NEGATIVE),
        _at_least("number of tokens", count, width + 1),
    ]
    if documents is not None:
        each = count / documents
        name = f"tokens per document ({count:,} in {documents:,})"
        found.append(_at_least(name, each, TOKENS_PER_DOCUMENT))
        if window is not None:
            found.append(_at_most(name, each, window))
    return found


def check_projection(projection: Tensor, width: int) -> list[Check]:
    """What a projection shows by itself: P = Pᵀ = P², its rank its trace."""
    if problem := _shape_problem(projection, width):
        return [problem]
    p = projection.double()
    rank = rank_of(p)
    return [
        _asymmetry(p),
        _at_most("largest entry of P² − P", float((p @ p - p).abs().max()), NOT_IDEMPOTENT),
        _at_most(
            f"distance of the trace from the rank {rank}", abs(float(p.trace()) - rank), TRACE
        ),
        _at_least("rank", rank, 1),
        _at_most("rank", rank, width - 1),
    ]


def rank_of(projection: Tensor) -> int:
    """Number of directions that a projection keeps."""
    return int((torch.linalg.eigvalsh(projection.double()) > 0.5).sum())


def compare_sum(
    model: EditableModel, texts: Sequence[Sequence[int]], name: str, moment: KeyCovariance
) -> list[Check]:
    """A moment against the inputs of its linear, and of all others of its width, over a sample.

    Args:
        model: The unedited model, opened with all linears of the width as target modules.
        texts: Token ids of the sample's documents.
        name: The linear that the moment is said to be of.
        moment: The moment.
    """
    mean = moment.mean().double()
    leading = _leading(mean)
    own = KeyCovariance(moment.identity, len(mean), model.device)
    sketches = _sketches(model, texts, name, leading.to(model.device, torch.float32), own)
    sample = own.mean().double().cpu()
    ratio = float(mean.diagonal().mean() / sample.diagonal().mean())
    fits = {
        other: log_correlation(mean.diagonal(), sketch.diagonal.cpu())
        for other, sketch in sketches.items()
    }
    cosine = float((leading @ _leading(sample)).abs())
    return [
        _at_least("mean of the diagonal over the sample's", ratio, 1 - MEAN_DIAGONAL),
        _at_most("mean of the diagonal over the sample's", ratio, 1 + MEAN_DIAGONAL),
        _at_least("correlation of the logarithms of the diagonals", fits[name], LOG_DIAGONAL),
        _at_least("cosine of the leading eigenvectors", cosine, EIGENVECTOR),
        _fits_best("correlation of the logarithms of the diagonals", name, fits, highest=True),
    ]


def compare_projection(
    model: EditableModel, texts: Sequence[Sequence[int]], name: str, projection: Tensor
) -> list[Check]:
    """A projection against the inputs of its linear, and of all others of its width."""
    rank, width = rank_of(projection), len(projection)
    sketches = _sketches(model, texts, name, projection.to(model.device, torch.float32))
    energies = {
        other: float(sketch.kept / sketch.squares.sum().clamp_min(1e-300)) * width / max(rank, 1)
        for other, sketch in sketches.items()
    }
    what = "energy of the sample's inputs per direction of P, over that of all directions,"
    return [
        _at_most(what, energies[name], NULL_ENERGY),
        _fits_best(what, name, energies, highest=False),
    ]


def require(checks: Sequence[Check], what: str, advice: str) -> None:
    """Refuse what fails a check.

    Raises:
        CovarianceError: Names every number that failed.
    """
    if failed := [str(check) for check in checks if not check.passed]:
        raise CovarianceError(f"{what} is refused: {'; '.join(failed)}. {advice}")


def log_correlation(one: Tensor, other: Tensor) -> float:
    """Correlation of the logarithms of two diagonals (d_in); inputs that never fire count as the
    least that does."""
    logs = []
    for diagonal in (one.double(), other.double()):
        positive = diagonal[diagonal > 0]
        least = float(positive.min()) if len(positive) else 1.0
        logs.append(diagonal.clamp_min(least).log())
    found = torch.corrcoef(torch.stack(logs))[0, 1]
    return float(found.nan_to_num(0.0))


def _sketches(
    model: EditableModel,
    texts: Sequence[Sequence[int]],
    name: str,
    reference: Tensor,
    own: KeyCovariance | None = None,
) -> Mapping[str, RowSketch]:
    width = len(reference)
    sketches = {
        other: RowSketch(reference, own if other == name else None)
        for other in model.modules
        if model.shape(other)[0] == width
    }
    if name not in sketches:
        raise CovarianceError(f"{name!r} is no linear of {width} inputs of this model")
    model.prefix_cache.clear()
    accumulate(model, texts, sketches)
    model.prefix_cache.clear()
    return sketches


def _leading(matrix: Tensor) -> Tensor:
    """The leading eigenvector (d_in)."""
    _, vectors = torch.linalg.eigh(matrix.double())
    return vectors[:, -1]


def _shape_problem(matrix: Tensor, width: int) -> Check | None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) != width:
        found = "×".join(str(n) for n in matrix.shape)
        value = float(matrix.shape[-1]) if matrix.ndim else 0.0
        bound = f"{width}×{width}, as the linear has {width} inputs"
        return Check(name=f"width of the matrix ({found})", value=value, bound=bound, passed=False)
    if broken := int((~matrix.isfinite()).sum()):
        return Check(
            name="number of entries that are not finite",
            value=broken,
            bound="0",
            passed=False,
        )
    return None


def _asymmetry(matrix: Tensor) -> Check:
    largest = float(matrix.abs().max()) or 1.0
    value = float((matrix - matrix.T).abs().max()) / largest
    return _at_most(
        "largest difference from the transpose, over the largest entry,", value, ASYMMETRY
    )


def _fits_best(what: str, name: str, fits: Mapping[str, float], *, highest: bool) -> Check:
    """The negative control: no other linear fits better than the one that is named."""
    others = {other: value for other, value in fits.items() if other != name}
    sign = 1.0 if highest else -1.0
    best = max(others, key=lambda other: sign * others[other], default=None)
    if best is None:
        return Check(
            name=what, value=fits[name], bound="no other linear of this width", passed=True
        )
    passed = sign * (fits[name] - others[best]) >= -_TIE
    bound = f"{'at least' if highest else 'at most'} {others[best]:.6g}, that of {best}"
    return Check(name=f"{what} of {name}", value=fits[name], bound=bound, passed=passed)


def _at_least(name: str, value: float, least: float) -> Check:
    return Check(name=name, value=value, bound=f"at least {least:g}", passed=value >= least)


def _at_most(name: str, value: float, most: float) -> Check:
    return Check(name=name, value=value, bound=f"at most {most:g}", passed=value <= most)
