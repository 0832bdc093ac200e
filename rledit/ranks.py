"""Collectives that editors need when several processes share work, each holding the whole model.

The reward prompts of a training step, and the prompts of a scoring pass, are sharded over the
ranks; gradients and readings are summed. Everything else runs alike on every rank, so all of them
take the same step. The package itself needs no more of a cluster than this protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from rledit.tokenization import Sample


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

    Samples are sorted by length and assigned round-robin, so that every rank gets its share of the
    long ones. The assignment depends on the samples alone, not on what a rank has run before.

    Args:
        samples: The samples to share out, the same on every rank.
        ranks: The ranks.
        first: The rank that gets the shortest sample; may exceed the number of ranks. Turning it
            from call to call evens out the odd sample.
    """
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]))
    return sorted(order[(ranks.rank - first) % ranks.size :: ranks.size])
