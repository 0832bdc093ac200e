"""Collectives that editors need when several processes share work on one model.

Prompts are dealt over the ranks: those of a training step, of an edit batch, of a scoring pass, and
the texts that statistics are taken of. Gradients and readings are summed, captured rows gathered.
Everything else runs alike on every rank, so all of them take the same step. The package itself
needs no more of a cluster than this protocol.

Where each rank holds the whole model, it makes the passes of its own share. Where each holds a
slice, a pass gathers layers from all of them, so all make it together: as many passes as the rank
with the most has to make, and the others make empty ones instead (see `MicroBatch.empty`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from rledit.lazy_torch import Tensor, torch
from rledit.tokenization import Sample

MostPasses = Callable[[int], int]
"""How many passes a rank makes that needs so many itself; every rank asks, in the same order."""


class Ranks(Protocol):
    """A group of processes doing one piece of work.

    Attributes:
        rank: This process's place, from 0.
        size: Number of processes.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks; every rank calls it, in the same order."""
        ...


class SingleProcess:
    """The group of one process."""

    rank = 0
    size = 1

    def all_reduce_(self, tensor: Tensor) -> None:
        """The sum over one rank is the tensor itself."""


def shard(samples: Sequence[Sample], ranks: Ranks, first: int = 0) -> list[int]:
    """Places of the samples that fall to this rank, ascending.

    Samples are dealt forwards and backwards in turn, the longest first, so that every rank gets its
    share of the long ones and an odd one is short. The assignment depends on the samples alone, not
    on what a rank has run before.

    Args:
        samples: The samples to share out, the same on every rank.
        ranks: The ranks.
        first: The rank that gets the longest sample; may exceed the number of ranks. Turning it
            from call to call evens out the odd sample.
    """
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i]))
    own = (ranks.rank - first) % ranks.size
    return sorted(i for n, i in enumerate(order) if _dealt(n, ranks.size) == own)


def _dealt(n: int, size: int) -> int:
    """The rank of the n-th sample by length: 0, 1, 1, 0, 0, 1, … of two.

    Always in one direction, the first rank would have the longer sample of every round.
    """
    turn, place = divmod(n, size)
    return place if turn % 2 == 0 else size - 1 - place


DEALT_TOGETHER = 64
"""Prompts that a `Deal` sorts by length at a time."""


class Deal:
    """A lasting share of prompts: each falls to one rank, whenever and with whatever it is asked.

    What a rank has once recorded of a prompt serves it from then on. Prompts are dealt a block at a
    time, so that those of the first edits of a stream are shared as evenly as all of them.

    Args:
        samples: All prompts, the same on every rank; of equal ones one counts.
        ranks: The ranks.
    """

    def __init__(self, samples: Sequence[Sample], ranks: Ranks) -> None:
        distinct = list({s.key: s for s in samples}.values())
        self._ranks = ranks
        self._owner: dict[bytes, int] = {}
        for first in range(0, len(distinct), DEALT_TOGETHER):
            block = sorted(distinct[first : first + DEALT_TOGETHER], key=len, reverse=True)
            for i, sample in enumerate(block):
                self._owner[sample.key] = (first + _dealt(i, ranks.size)) % ranks.size

    def own(self, samples: Sequence[Sample]) -> list[int]:
        """Places of the samples that fall to this rank, ascending; all of them have been dealt."""
        return [i for i, s in enumerate(samples) if self._owner[s.key] == self._ranks.rank]


def largest(ranks: Ranks, value: int) -> int:
    """The largest of all ranks' values; every rank makes this call."""
    if ranks.size == 1:
        return value
    values = torch.zeros(ranks.size, dtype=torch.int64)
    values[ranks.rank] = value
    ranks.all_reduce_(values)
    return int(values.max())


def gathered(ranks: Ranks, own: Tensor, places: Tensor, n: int) -> Tensor:
    """(n, ...) rows of all ranks, of which this one has its `own` at `places` (own rows,)."""
    if ranks.size == 1 and len(own) == n:
        return own[places.argsort()]
    whole = own.new_zeros(n, *own.shape[1:])
    whole[places] = own
    ranks.all_reduce_(whole)
    return whole
