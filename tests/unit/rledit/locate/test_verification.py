"""Checks of others' statistics, those included that no file of a tiny model brings to fail.

The inputs are drawn: two linears of one width, whose inputs differ in size and have correlations.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rledit.locate.nullspace import null_space
from rledit.locate.verification import (
    Check,
    Observed,
    check_projection,
    check_sum,
    compare_gradients,
    compare_projection,
    compare_sum,
)

WIDTH, TOKENS = 24, 4000
ONE, OTHER = "layers.0.down", "layers.1.down"


def inputs(linear: str, seed: int, leading: float = 0.0) -> Tensor:
    """(tokens, width): the linear's own mixture and sizes, and a direction that all tokens have."""
    of_linear = torch.Generator().manual_seed(len(linear) + ord(linear[7]))
    options = {"generator": of_linear, "dtype": torch.float64}
    mixture = torch.eye(WIDTH).double() + 0.3 * torch.randn(WIDTH, WIDTH, **options)  # type: ignore[call-overload]
    sizes = torch.randn(WIDTH, **options).exp()  # type: ignore[call-overload]
    direction = torch.randn(WIDTH, **options).sign()  # type: ignore[call-overload]
    own = torch.Generator().manual_seed(seed)
    drawn = torch.randn(TOKENS, WIDTH, generator=own, dtype=torch.float64)
    found: Tensor = (drawn @ mixture.T + leading * direction) * sizes
    return found


def mean(linear: str, seed: int, leading: float = 0.0) -> Tensor:
    rows = inputs(linear, seed, leading)
    return rows.T @ rows / len(rows)


def observed(leading: float = 0.0) -> Observed:
    means = {name: mean(name, 1, leading) for name in (ONE, OTHER)}
    return Observed(means=means, diagonals={k: v.diagonal() for k, v in means.items()})


def failed(checks: Sequence[Check]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def names(checks: Sequence[Check]) -> set[str]:
    return {check.name for check in checks}


def turned(matrix: Tensor, by: float) -> Tensor:
    """A covariance whose leading eigenvector is turned towards the second, all else as it was."""
    values, vectors = torch.linalg.eigh(matrix)
    angle = torch.tensor(by, dtype=torch.float64)
    first, second = vectors[:, -1].clone(), vectors[:, -2].clone()
    vectors[:, -1] = angle.cos() * first + angle.sin() * second
    vectors[:, -2] = angle.cos() * second - angle.sin() * first
    return vectors @ torch.diag(values) @ vectors.T


LEADING = "cosine of the leading eigenvectors"


def test_what_a_linear_has_itself_passes_every_check() -> None:
    for leading in (0.0, 3.0):
        own = mean(ONE, 2, leading)
        checks = [
            *check_sum(own * TOKENS, TOKENS, 100, WIDTH, 512),
            *compare_sum(observed(leading), ONE, own),
        ]
        assert failed(checks) == []
        assert (LEADING in names(checks)) == (leading > 0)


def test_another_leading_direction_is_refused_where_it_has_a_third_of_the_trace() -> None:
    seen, own = observed(3.0), mean(ONE, 2, 3.0)
    assert failed(compare_sum(seen, ONE, turned(own, 0.2))) == []
    assert failed(compare_sum(seen, ONE, turned(own, 0.6))) == [LEADING]
    # Without such a direction it is not asked for: it would be one of the text.
    assert LEADING not in names(compare_sum(observed(), ONE, turned(mean(ONE, 2), 1.5)))


def projection_of(linear: str) -> Tensor:
    return null_space(mean(linear, 2), 0.5, linear).projection.double()


def test_a_projection_of_the_linear_passes_every_check() -> None:
    own = projection_of(ONE)
    assert 1 <= int(own.trace().round()) < WIDTH
    assert failed(check_projection(own, WIDTH)) == []
    assert failed(compare_projection(observed(), ONE, own)) == []


def test_what_is_no_projection_is_refused_by_its_number() -> None:
    nothing = torch.zeros_like(projection_of(ONE))
    assert failed(check_projection(nothing, WIDTH)) == ["rank"]
    assert failed(check_projection(torch.eye(WIDTH).double(), WIDTH)) == ["rank"]
    # Half of each of two directions: no rank, and a trace of one.
    halves = nothing.clone()
    halves[0, 0] = halves[1, 1] = 0.49999
    assert set(failed(check_projection(halves, WIDTH))) == {
        "largest entry of P² − P",
        "distance of the trace from the rank 0",
        "rank",
    }


@pytest.mark.parametrize("what", ["of the other linear", "of nothing", "of what is large"])
def test_a_projection_that_does_not_fit_is_refused(what: str) -> None:
    rank = int(projection_of(ONE).trace().round())
    energy = "the sample's energy per direction of P, over that per direction"
    fits = "correlation of P's diagonal with minus the logarithm of the sample's"
    if what == "of the other linear":
        found = failed(compare_projection(observed(), ONE, projection_of(OTHER)))
        assert f"{fits} of {ONE}" in found  # the other one fits better
    elif what == "of nothing":
        basis, _ = torch.linalg.qr(
            torch.randn(WIDTH, rank, generator=torch.Generator().manual_seed(0)).double()
        )
        assert fits in failed(compare_projection(observed(), ONE, basis @ basis.T))
    else:
        own = projection_of(ONE)
        found = failed(compare_projection(observed(), ONE, torch.eye(WIDTH).double() - own))
        assert energy in found and fits in found


def test_gradients_of_other_outputs_are_refused() -> None:
    own, sample = mean(ONE, 2), mean(ONE, 1)
    assert failed(compare_gradients(sample, own)) == []
    assert failed(compare_gradients(sample, mean(OTHER, 2))) != []
