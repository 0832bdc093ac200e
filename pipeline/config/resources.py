"""Resources of a cell: workers, GPUs, sharding, stores. They change no number by more than how
sums are rounded, and no fingerprint but one: a network that is trained with no prefix store at all
is another than one with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sharding = Literal["none", "zero3"]


@dataclass(frozen=True, kw_only=True)
class ResourcesEntry:
    """What training, editing and scoring of one cell are given.

    Attributes:
        gpus: GPUs per rank; may be a fraction.
        cpus: Cores per rank; None: as many as a cell has threads.
        memory_gb: Host memory per rank in GB (1e9 bytes), kept free by the scheduler; None: it does
            not count.
        ranks: Processes that share the work of a cell.
        sharding: `none`: each rank holds the whole model, and they share the prompts of training
            and scoring; `zero3`: each holds a slice of the model, for models too large for one GPU.
        offload: Keep the slices of a sharded model in host memory.
        prefix_store_gb: Disk in GB (1e9 bytes), in the cache, for the hidden states of all prompts
            at the first edited layer of a model, so that no later cell has to make them; 0: none
            are kept.
    """

    gpus: float = 0.0
    cpus: int | None = None
    memory_gb: float | None = None
    ranks: int = 1
    sharding: Sharding = "none"
    offload: bool = False
    prefix_store_gb: float = 4.0

    @property
    def gang(self) -> bool:
        """Whether a cell is worked on by processes of its own, placed together."""
        return self.ranks > 1 or self.sharding != "none"

    def demand(self) -> dict[str, float]:
        """What one cell needs in all, by the scheduler's names; memory in bytes."""
        return {
            "CPU": self.ranks * (self.cpus or 1),
            "GPU": self.ranks * self.gpus,
            "memory": self.ranks * (self.memory_gb or 0.0) * 1e9,
        }

    def problem(self) -> str | None:
        """What is wrong with the values; None where nothing is."""
        if self.ranks < 1:
            return f"ranks: {self.ranks}: a cell needs at least one"
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            return f"gpus: {self.gpus}: expected a fraction of one GPU, or a whole number"
        if 0 < self.gpus < 1 and self.ranks > 1:
            return (
                f"gpus: {self.gpus} with ranks: {self.ranks}: ranks that share a GPU cannot "
                "exchange data; give each a whole one"
            )
        if self.cpus is not None and self.cpus < 1:
            return f"cpus: {self.cpus}: a rank needs at least one core"
        if self.memory_gb is not None and self.memory_gb <= 0:
            return f"memory_gb: {self.memory_gb}: expected more than zero"
        if self.offload and self.sharding == "none":
            return (
                "offload: only a sharded model's slices can be kept in host memory; add "
                "sharding: zero3"
            )
        return None
