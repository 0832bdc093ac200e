"""The processes that do one piece of work together, and what they have to agree on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pipeline.resources import Sharding
from rledit.ranks import Alone, Ranks


@dataclass(frozen=True, kw_only=True)
class Gang:
    """The ranks of one task, as one of them sees them.

    Every rank runs the same stages. Rank 0, the leader, alone writes states, caches and the lake.

    Attributes:
        together: The ranks.
        sharding: `zero3`: each rank holds a slice of the model, and all make the same passes;
            `none`: each holds the whole model, and they share the passes out.
        offload: Keep the slices of a sharded model in host memory.
    """

    together: Ranks = field(default_factory=Alone)
    sharding: Sharding = "none"
    offload: bool = False

    @property
    def leads(self) -> bool:
        """Whether this rank writes."""
        return self.together.rank == 0

    def decide(self, wish: bool) -> bool:
        """The leader's wish, on every rank; for what depends on one rank's clock or disk."""
        if self.together.size == 1:
            return wish
        flag = torch.tensor(int(wish and self.leads))
        self.together.sum_(flag)
        return bool(flag)

    def each(self, value: float) -> list[float]:
        """Every rank's value, by rank."""
        values = torch.zeros(self.together.size, dtype=torch.float64)
        values[self.together.rank] = value
        self.together.sum_(values)
        return values.tolist()


ALONE = Gang()
