"""Checks of key covariance and projections that others have made, before an editor uses them.

What a file is called proves nothing. It is looked at by itself (shape, symmetry, spectrum, count),
and against this model: the inputs of the linear it is said to be of are summed over a sample of
text, and so are the squares of those of every other linear of that width, of which the one that is
named has to fit best. That tells layers and models apart; a model from its fine-tuned kin it may
not.

All thresholds are ours and stand here. They were set on SmolLM2-135M: the moments of 15 of its 30
``down_proj`` over 60 paragraphs of licences and manuals against those over 60 docstrings of Python,
each of about 5,800 tokens. Behind each threshold stands what was measured there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rledit.locate.covariance import (
    CovarianceError,
    CovarianceFingerprint,
    KeyCovariance,
    accumulate,
)
from rledit.model import EditableModel

ASYMMETRY = 1e-4
"""Largest |C − Cᵀ| or |P − Pᵀ|, relative to the largest entry."""
NEGATIVE = 1e-4
"""The smallest eigenvalue may be below zero by this part of the largest."""
TOKENS_PER_DOCUMENT = 2.0
"""Fewer tokens than this a document and the count is one of documents."""
MEAN_DIAGONAL = 1.75
"""Factor that the mean of the diagonal may be off the sample's: 0.92 to 1.46 (0.15 to 1.48 against
short sentences, where the first token of a text, which is far larger, comes more often)."""
LOG_DIAGONAL = 0.3
"""Least correlation of the logarithms of the diagonals: at least 0.41 of the same linear, at most
0.07 of any other. Their cosine, which is 0.82 to 0.996 of the same and up to 0.99 of others, tells
nothing."""
CORRELATIONS = 0.1
"""Least cosine of the correlations of different inputs, which are the off-diagonal entries over the
root of the diagonal ones: at least 0.155 of the same linear, at most 0.003 of others."""
LEADING_SHARE = 1 / 3
"""Share of the trace from which the leading eigenvector is one of the model and not of the text."""
EIGENVECTOR = 0.9
"""Least |cosine| of the leading eigenvectors, where both have that share: at least 0.948. Below it,
0.33 to 0.81 of the same linear."""
NOT_IDEMPOTENT = 1e-3
"""Largest |P² − P|."""
TRACE = 0.5
"""How far the trace of a projection may be from its rank."""
NULL_ENERGY = 0.9
"""Most energy that a sample's inputs may have per direction of P, over that per direction at all:
at most 0.79 of the same linear, 1 of a projection that has nothing to do with it."""
NULL_DIAGONAL = 0.25
"""Least correlation of P's diagonal with minus the logarithm of the sample's: at least 0.31 of the
same linear, at most 0.07 of any other."""
LOG_GRADIENTS = 0.4
"""Least correlation of the logarithms of the diagonals of two covariances of output gradients, over
1,670 tokens of docstrings and 1,259 of licences: 0.55 to 0.87 of the same linear, up to 0.80 of the
next layer's, −0.06 to 0.37 ten layers apart in the upper half. Their means differ up to 20 times
between the texts, and their correlations (0.02 to 0.32) tell nothing over so few tokens."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What a model's linears have been seen to take in over a sample of text.

    Attributes:
        means: C of each linear that was asked for, float64 on the CPU.
        diagonals: Diagonal of C (d_in) of every linear of their widths.
    """

    means: Mapping[str, Tensor]
    diagonals: Mapping[str, Tensor]


class _Squares:
    """Sum of the squares of a linear's inputs, and of k kᵀ where that is asked for as well."""

    def __init__(self, width: int, device: torch.device, full: KeyCovariance | None) -> None:
        self.full = full
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.count = 0

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Add rows (n, d_in)."""
        if self.full is not None:
            self.full.update(rows)
        self.total += rows.double().square().sum(0)
        self.count += len(rows)

    @property
    def finite(self) -> bool:
        """Whether every input so far was a number."""
        return bool(self.total.isfinite().all())


def observe(
    model: EditableModel, texts: Sequence[Sequence[int]], names: Collection[str]
) -> Observed:
    """Sum the inputs of a model's linears over a sample.

    Args:
        model: The unedited model, opened with all linears of the widths as target modules.
        texts: Token ids of the sample's documents.
        names: Linears whose whole C is needed.

    Raises:
        CovarianceError: One is no target module of the model.
        NonFiniteError: An input is no number.
    """
    if lacking := set(names) - set(model.modules):
        raise CovarianceError(f"{', '.join(sorted(lacking))}: no target module of this model")
    widths = {model.shape(name)[0] for name in names}
    sums = {}
    for name in model.modules:
        if (width := model.shape(name)[0]) in widths:
            identity = CovarianceFingerprint(model_hash="", module=name, corpus_hash="sample")
            full = KeyCovariance(identity, width, model.device) if name in names else None
            sums[name] = _Squares(width, model.device, full)
    model.prefix_cache.clear()
    accumulate(model, texts, sums)
    model.prefix_cache.clear()
    return Observed(
        means={n: s.full.mean().double().cpu() for n, s in sums.items() if s.full is not None},
        diagonals={n: (s.total / max(s.count, 1)).cpu() for n, s in sums.items()},
    )


def check_sum(
    total: Tensor,
    count: int,
    documents: int | None,
    width: int,
    window: int | None,
    side: str = "inputs",
) -> list[Check]:
    """What a sum of k kᵀ shows by itself.

    Args:
        total: Σ k kᵀ.
        count: Tokens.
        documents: Documents, where the file says so.
        width: d_in of the linear it is said to be of.
        window: Tokens that the model takes; None where it does not say.
        side: What it is of: `outputs` where it is of gradients.
    """
    if problem := _shape_problem(total, width, side):
        return [problem]
    values = torch.linalg.eigvalsh(total.double())
    least, largest = float(values[0]), float(values.abs().max())
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


def compare_gradients(sample: Tensor, mean: Tensor) -> list[Check]:
    """B of a file against that of its linear over a sample.

    Gradients of neighbouring layers are much alike: which linear the file is of, its covariance of
    keys has to say.

    Args:
        sample: B (d_out, d_out) over the sample.
        mean: That of the file.
    """
    mean, sample = mean.double().cpu(), sample.double().cpu()
    found = _correlation(_log(mean.diagonal()), _log(sample.diagonal()))
    what = "correlation of the logarithms of the gradients' diagonals"
    return [_at_least(what, found, LOG_GRADIENTS)]


def compare_sum(observed: Observed, name: str, mean: Tensor) -> list[Check]:
    """C of a file against the inputs of its linear, and of all others of its width.

    Args:
        observed: What the model's linears take in.
        name: The linear that the file is said to be of.
        mean: C (d_in, d_in).
    """
    mean, sample = mean.double().cpu(), observed.means[name]
    diagonal = mean.diagonal()
    ratio = float(diagonal.mean() / sample.diagonal().mean())
    fits = {
        other: _correlation(_log(diagonal), _log(seen))
        for other, seen in observed.diagonals.items()
        if len(seen) == len(mean)
    }
    what = "correlation of the logarithms of the diagonals"
    found = [
        _between("mean of the diagonal over the sample's", ratio, 1 / MEAN_DIAGONAL, MEAN_DIAGONAL),
        _at_least(what, fits[name], LOG_DIAGONAL),
        _at_least(
            "cosine of the correlations of different inputs",
            _cosine(_correlations(mean), _correlations(sample)),
            CORRELATIONS,
        ),
    ]
    vector, share = _leading(mean)
    own, own_share = _leading(sample)
    if min(share, own_share) >= LEADING_SHARE:
        cosine = float((vector @ own).abs())
        found.append(_at_least("cosine of the leading eigenvectors", cosine, EIGENVECTOR))
    return [*found, _fits_best(what, name, fits)]


def compare_projection(observed: Observed, name: str, projection: Tensor) -> list[Check]:
    """A projection against the inputs of its linear, and of all others of its width."""
    p, sample = projection.double().cpu(), observed.means[name]
    energy = float((p * sample).sum() / p.trace() / (sample.trace() / len(p)))
    fits = {
        other: _correlation(p.diagonal(), -_log(seen))
        for other, seen in observed.diagonals.items()
        if len(seen) == len(p)
    }
    what = "correlation of P's diagonal with minus the logarithm of the sample's"
    return [
        _at_most(
            "the sample's energy per direction of P, over that per direction", energy, NULL_ENERGY
        ),
        _at_least(what, fits[name], NULL_DIAGONAL),
        _fits_best(what, name, fits),
    ]


def require(checks: Sequence[Check], what: str, advice: str) -> None:
    """Refuse what fails a check.

    Raises:
        CovarianceError: Names every number that failed.
    """
    if failed := [str(check) for check in checks if not check.passed]:
        raise CovarianceError(f"{what} is refused: {'; '.join(failed)}. {advice}")


def _log(diagonal: Tensor) -> Tensor:
    """Logarithms of a diagonal (d_in); inputs that never fire count as the least that does."""
    diagonal = diagonal.double()
    positive = diagonal[diagonal > 0]
    return diagonal.clamp_min(float(positive.min()) if len(positive) else 1.0).log()


def _correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation; 0 where one of them is constant."""
    return _cosine(one - one.mean(), other - other.mean())


def _cosine(one: Tensor, other: Tensor) -> float:
    norms = one.norm() * other.norm()
    return float((one * other).sum() / norms) if float(norms) > 0 else 0.0


def _correlations(mean: Tensor) -> Tensor:
    """C_ij over the root of C_ii C_jj, 0 on the diagonal."""
    scale = _log(mean.diagonal()).mul(-0.5).exp()
    found = mean * scale[:, None] * scale
    return found - torch.diag(found.diagonal())


def _leading(matrix: Tensor) -> tuple[Tensor, float]:
    """The leading eigenvector (d_in), and its eigenvalue's share of the trace."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return vectors[:, -1], float(values[-1] / matrix.trace())


def _shape_problem(matrix: Tensor, width: int, side: str = "inputs") -> Check | None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) != width:
        found = "×".join(str(n) for n in matrix.shape)
        value = float(matrix.shape[-1]) if matrix.ndim else 0.0
        bound = f"{width}×{width}, as the linear has {width} {side}"
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


def _fits_best(what: str, name: str, fits: Mapping[str, float]) -> Check:
    """The negative control: no other linear fits better than the one that is named."""
    others = {other: value for other, value in fits.items() if other != name}
    best = max(others, key=lambda other: others[other], default=None)
    named = f"{what} of {name}"
    if best is None:
        bound = "anything: no other linear has this width"
        return Check(name=named, value=fits[name], bound=bound, passed=True)
    bound = f"at least {others[best]:.6g}, that of {best}"
    passed = fits[name] - others[best] >= -_TIE
    return Check(name=named, value=fits[name], bound=bound, passed=passed)


def _between(name: str, value: float, least: float, most: float) -> Check:
    bound = f"{least:.3g} to {most:.3g}"
    return Check(name=name, value=value, bound=bound, passed=least <= value <= most)


def _at_least(name: str, value: float, least: float) -> Check:
    return Check(name=name, value=value, bound=f"at least {least:g}", passed=value >= least)


def _at_most(name: str, value: float, most: float) -> Check:
    return Check(name=name, value=value, bound=f"at most {most:g}", passed=value <= most)
