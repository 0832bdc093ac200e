"""Whether a cell fits on its GPUs, and on how many more it would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.estimate.device import Placement
from pipeline.estimate.memory import Memory, memory_of
from pipeline.estimate.workload import Workload
from pipeline.plan import unshardable

_MOST_RANKS = 16
# What is tried, in this order: the fewest GPUs, slices in host memory before a second machine.
_CANDIDATES = ((2, False), (4, False), (8, False), (2, True), (4, True), (8, True), (16, False))


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A cell that cannot run where it is to run.

    Attributes:
        needs_gb: Peak memory of a rank.
        has_gb: Memory of its GPU.
        part: What takes most of it.
    """

    model: str
    editor: str
    needs_gb: float
    has_gb: float
    part: str


def misfit_lines(misfits: Sequence[Misfit]) -> list[str]:
    """A line for every model, with the editors that do not fit with it."""
    lines = []
    for model in dict.fromkeys(m.model for m in misfits):
        own = [m for m in misfits if m.model == model]
        editors = ", ".join(dict.fromkeys(m.editor for m in own))
        worst = max(own, key=lambda m: m.needs_gb)
        lines.append(
            f"{model} × {editors}: up to {worst.needs_gb:.0f} GB on each GPU, which has "
            f"{worst.has_gb:g} (most of it: {worst.part})"
        )
    return lines


def misfit(work: Workload, placement: Placement, memory: Memory) -> Misfit | None:
    """None where the memory suffices, or is not that of a GPU."""
    has = placement.device.memory_gb
    if has is None or memory.gigabytes <= has:
        return None
    cell = work.cell
    return Misfit(
        model=cell.model.name,
        editor=cell.label,
        needs_gb=memory.gigabytes,
        has_gb=has,
        part=memory.largest,
    )


def smallest_fit(works: Sequence[Workload], placement: Placement) -> Placement | None:
    """The first of the candidates under ZeRO-3 on which all of these fit; None without one."""
    has = placement.device.memory_gb
    assert has is not None
    if not all(shardable(work) for work in works):
        return None
    for ranks, offload in _CANDIDATES:
        candidate = replace(placement, sharded=True, ranks=ranks, offload=offload)
        if peak_gb(works, candidate) <= has:
            return candidate
    return None


def widest(placement: Placement) -> Placement:
    """The most GPUs of the candidates, each with as little of the model as can be."""
    return replace(placement, sharded=True, ranks=_MOST_RANKS, offload=True)


def peak_gb(works: Sequence[Workload], placement: Placement) -> float:
    """The memory that the largest of these needs."""
    return max(memory_of(work, placement).gigabytes for work in works)


def shardable(work: Workload) -> bool:
    """Whether the model of a cell may lie in slices."""
    return unshardable(work.cell) is None
