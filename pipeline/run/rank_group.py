"""Gangs: the ranks that do one piece of work together, and their collective decisions."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.config.resources import Sharding
from rledit.lazy_torch import torch
from rledit.ranks import Ranks, SingleProcess


@dataclass(frozen=True, kw_only=True)
class Gang:
    """The ranks of one task, as one of them sees them.

    Every rank runs the same stages. Rank 0, the leader, alone writes states, caches and the lake.

    Attributes:
        together: The ranks.
        sharding: `zero3`: each rank holds a slice of the model; `none`: each holds the whole model.
            Either way they share the prompts out.
        offload: Keep the slices of a sharded model in host memory.
    """

    together: Ranks = field(default_factory=SingleProcess)
    sharding: Sharding = "none"
    offload: bool = False

    @property
    def is_rank_zero(self) -> bool:
        """Whether this rank writes."""
        return self.together.rank == 0

    def broadcast(self, wish: bool) -> bool:
        """The leader's wish, on every rank; for what depends on one rank's clock or disk."""
        if self.together.size == 1:
            return wish
        flag = torch.tensor(int(wish and self.is_rank_zero))
        self.together.all_reduce_(flag)
        return bool(flag)

    def all_gather(self, value: float) -> list[float]:
        """Every rank's value, by rank."""
        values = torch.zeros(self.together.size, dtype=torch.float64)
        values[self.together.rank] = value
        self.together.all_reduce_(values)
        return values.tolist()


SINGLE_PROCESS = Gang()
