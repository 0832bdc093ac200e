"""Whether a cell fits on its GPUs, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.estimate.device import Placement
from pipeline.estimate.memory import Memory, memory_of
from pipeline.estimate.workload import Workload

_MOST_RANKS = 64


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A cell that cannot run where it is to run.

    Attributes:
        label: Model and editor.
        needs_gb: Peak memory of a rank.
        has_gb: Memory of its GPU.
        part: What takes most of it.
        remedy: A placement that would do, in words.
    """

    label: str
    needs_gb: float
    has_gb: float
    part: str
    remedy: str

    @property
    def text(self) -> str:
        """One line for the user."""
        return (
            f"{self.label} needs {self.needs_gb:.0f} GB on each GPU, which has {self.has_gb:g} "
            f"(most of it: {self.part}); {self.remedy}"
        )


def misfit(work: Workload, placement: Placement, memory: Memory) -> Misfit | None:
    """None where the memory suffices, or is not that of a GPU."""
    has = placement.device.memory_gb
    if has is None or memory.gigabytes <= has:
        return None
    cell = work.cell
    return Misfit(
        label=f"{cell.model.name} × {cell.label}",
        needs_gb=memory.gigabytes,
        has_gb=has,
        part=memory.largest,
        remedy=_remedy(work, placement, has),
    )


def _remedy(work: Workload, placement: Placement, has: float) -> str:
    other = smallest_fit(work, placement)
    if other is not None:
        entry = f"ranks: {other.ranks}, sharding: zero3" + ", offload: true" * other.offload
        needs = memory_of(work, other).gigabytes
        return (
            f"it would fit as {other.words} ({needs:.0f} GB each): --set "
            f"'resources={{gpus: 1, {entry}}}'"
        )
    alone = memory_of(work, replace(placement, sharded=True, ranks=_MOST_RANKS, offload=True))
    return (
        f"sharding does not help: {alone.largest} alone "
        f"({alone.parts[alone.largest] / 1e9:.0f} GB) lies on every rank. Take larger GPUs "
        "(--gpu-memory-gb), a smaller rank of the hypernetwork, or fewer edited layers"
    )


def smallest_fit(work: Workload, placement: Placement) -> Placement | None:
    """The fewest GPUs under ZeRO-3 on which the cell fits, offloading only where it must."""
    has = placement.device.memory_gb
    assert has is not None
    for offload in (False, True):
        ranks = 2
        while ranks <= _MOST_RANKS:
            candidate = replace(placement, sharded=True, ranks=ranks, offload=offload)
            if memory_of(work, candidate).gigabytes <= has:
                return candidate
            ranks *= 2
    return None
