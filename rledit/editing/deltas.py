"""Keeps the change of a batch: low-rank factors, or a dense matrix where the method has no factors.

For the ledger, which takes batches back, and for exports.

A batch is what its terms say. Whatever an editor did, the matrices afterwards are those before it
plus the terms, added in their order in float32 (float64 for a float64 model), so that unedited
matrices and terms give the edited ones bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rledit.shift import LowRankShift
from rledit.weights import Addition, EditedWeights

Terms = Mapping[str, tuple[LowRankShift, ...]]


@dataclass(frozen=True, eq=False)
class Delta:
    """The change of one batch.

    Attributes:
        terms: Module → its terms in the order they are added; one without a left factor is dense.
    """

    terms: Terms

    @property
    def dense(self) -> bool:
        """Whether a matrix was changed by a method that has no factors."""
        return any(term.left is None for own in self.terms.values() for term in own)

    @property
    def rank(self) -> int:
        """Largest rank that the change of a matrix may have."""
        return max((sum(_rank(term) for term in own) for own in self.terms.values()), default=0)

    @property
    def n_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The terms as the tensors of a file: ``{module}:{term}:left`` (n x d_in), or none for a
        dense term, and ``:right`` (n x d_out, or d_in x d_out)."""
        found: dict[str, Tensor] = {}
        for name, own in self.terms.items():
            for i, term in enumerate(own):
                if term.left is not None:
                    found[f"{name}:{i}:left"] = term.left.contiguous()
                found[f"{name}:{i}:right"] = term.right.contiguous()
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Delta:
        """The change that a file's tensors say.

        Raises:
            ValueError: They are not named as `tensors` names them.
        """
        found: dict[str, dict[int, dict[str, Tensor]]] = {}
        for key, tensor in tensors.items():
            name, _, rest = key.partition(":")
            number, _, side = rest.partition(":")
            if side not in ("left", "right") or not number.isdigit():
                raise ValueError(f"{key!r} names no factor of a change")
            found.setdefault(name, {}).setdefault(int(number), {})[side] = tensor
        return cls(
            {
                name: tuple(
                    LowRankShift(sides.get("left"), sides["right"])
                    for _, sides in sorted(own.items())
                )
                for name, own in found.items()
            }
        )

    def matrix(self, name: str) -> Tensor:
        """The change of a module as (d_out x d_in), in float64."""
        first, *rest = (_double(term).dense().T for term in self.terms[name])
        return sum(rest, first)

    def to(self, device: torch.device) -> Delta:
        """The same on another device."""

        def moved(term: LowRankShift) -> LowRankShift:
            left = None if term.left is None else term.left.to(device)
            return LowRankShift(left, term.right.to(device))

        return Delta({name: tuple(map(moved, own)) for name, own in self.terms.items()})

    def compact(self) -> Delta:
        """The change with the terms of a matrix as one dense term where that is smaller.

        It differs by round-off: whoever takes it has to add it anew.
        """
        found: dict[str, tuple[LowRankShift, ...]] = {}
        for name, own in self.terms.items():
            left = own[0].left
            width = own[0].right.shape[0] if left is None else left.shape[1]
            factors = sum(t.right.numel() + (0 if t.left is None else t.left.numel()) for t in own)
            if len(own) > 1 and factors > width * own[0].right.shape[1]:
                dense = self.matrix(name).T.to(own[0].right.dtype).contiguous()
                found[name] = (LowRankShift(None, dense),)
            else:
                found[name] = own
        return Delta(found)

    def then(self, later: Delta) -> Delta:
        """Both changes, one after the other."""
        names = dict.fromkeys((*self.terms, *later.terms))
        return Delta({n: (*self.terms.get(n, ()), *later.terms.get(n, ())) for n in names})


class Recorder:
    """Notes what an editor adds to the matrices of a model, and what it is in the end.

    Args:
        weights: The matrices, as they are before the batch.
    """

    def __init__(self, weights: EditedWeights) -> None:
        self._weights = weights
        self._before = {name: full(weights.read(name)).clone() for name in weights.names}
        self._added: dict[str, list[LowRankShift]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note the shifts that are added inside the context."""
        weights: Any = self._weights
        add_all = weights.add_all  # what `add` calls, too

        def noted(shifts: Mapping[str, Addition]) -> list[float]:
            for name, shift in shifts.items():
                like = self._before[name]
                own = self._added.setdefault(name, [])
                if isinstance(shift, LowRankShift):
                    own.append(_kept(shift, like.dtype))
                else:
                    own.append(_dense(shift.dense(), like))
            result: list[float] = add_all(shifts)
            return result

        weights.add_all = noted
        try:
            yield
        finally:
            del weights.add_all

    def delta(self) -> Delta:
        """The change so far: the terms that were added, where they are all that happened."""
        terms: dict[str, tuple[LowRankShift, ...]] = {}
        for name, before in self._before.items():
            after = full(self._weights.read(name))
            if torch.equal(before, after):
                continue
            added = tuple(self._added.get(name, ()))
            expected = before.clone()
            for term in added:
                term.add_to(expected)
            if added and torch.equal(expected, after):
                terms[name] = added
            else:
                terms[name] = (_dense((after - before).T, before),)
        return Delta(terms)


def distance(one: Delta, other: Delta) -> float:
    """‖other − one‖ over ‖one‖, over all matrices."""
    names = dict.fromkeys((*one.terms, *other.terms))
    difference = torch.zeros((), dtype=torch.float64)
    size = torch.zeros((), dtype=torch.float64)
    for name in names:
        mine = one.matrix(name) if name in one.terms else 0.0
        theirs = other.matrix(name) if name in other.terms else 0.0
        difference += torch.as_tensor(theirs - mine).square().sum()
        size += torch.as_tensor(mine).square().sum()
    return float((difference / size.clamp_min(1e-30)).sqrt())


def full(matrix: Tensor) -> Tensor:
    """A matrix in the precision that changes accumulate in."""
    return matrix.float() if matrix.dtype in (torch.bfloat16, torch.float16) else matrix


def _kept(shift: LowRankShift, dtype: torch.dtype) -> LowRankShift:
    """A shift as it is added: in the precision of the matrix."""
    left = None if shift.left is None else shift.left.detach().to(dtype).clone()
    return LowRankShift(left, shift.right.detach().to(dtype).clone())


def _dense(change: Tensor, like: Tensor) -> LowRankShift:
    return LowRankShift(None, change.detach().to(like).contiguous().clone())


def _rank(term: LowRankShift) -> int:
    return min(term.right.shape) if term.left is None else len(term.left)


def _double(term: LowRankShift) -> LowRankShift:
    return LowRankShift(None if term.left is None else term.left.double(), term.right.double())
