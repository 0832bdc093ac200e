"""Whether a cell fits on its GPUs, and what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.estimate.device import Placement
from pipeline.estimate.memory import Memory, memory_of
from pipeline.estimate.workload import Workload
from rledit.editors import editor_class

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
        remedy: A placement that would do, in words.
    """

    model: str
    editor: str
    needs_gb: float
    has_gb: float
    part: str
    remedy: str


def misfit_lines(misfits: Sequence[Misfit]) -> list[str]:
    """A line for every model and remedy, with the editors it concerns."""
    lines = []
    for model, remedy in dict.fromkeys((m.model, m.remedy) for m in misfits):
        own = [m for m in misfits if (m.model, m.remedy) == (model, remedy)]
        editors = ", ".join(dict.fromkeys(m.editor for m in own))
        worst = max(own, key=lambda m: m.needs_gb)
        lines.append(
            f"{model} × {editors}: up to {worst.needs_gb:.0f} GB on each GPU, which has "
            f"{worst.has_gb:g} (most of it: {worst.part}); {remedy}"
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
        remedy=_remedy(work, placement, has),
    )


def _remedy(work: Workload, placement: Placement, has: float) -> str:
    other = smallest_fit(work, placement)
    if other is not None:
        entry = f"ranks: {other.ranks}, sharding: zero3" + ", offload: true" * other.offload
        return f"it fits as {other.words}: --set 'resources={{gpus: 1, {entry}}}'"
    if not _shardable(work):
        return f"it cannot be sharded: take GPUs of at least {_whole(work, placement):.0f} GB"
    alone = memory_of(work, replace(placement, sharded=True, ranks=_MOST_RANKS, offload=True))
    return (
        f"sharding does not help, every rank keeps its {alone.largest}: take GPUs of at least "
        f"{alone.gigabytes:.0f} GB, smaller batches, or fewer edited layers"
    )


def smallest_fit(work: Workload, placement: Placement) -> Placement | None:
    """The first of the candidates under ZeRO-3 on which the cell fits."""
    has = placement.device.memory_gb
    assert has is not None
    if not _shardable(work):
        return None
    for ranks, offload in _CANDIDATES:
        candidate = replace(placement, sharded=True, ranks=ranks, offload=offload)
        if memory_of(work, candidate).gigabytes <= has:
            return candidate
    return None


def _shardable(work: Workload) -> bool:
    return editor_class(work.cell.editor.editor).shardable


def _whole(work: Workload, placement: Placement) -> float:
    return memory_of(work, replace(placement, sharded=False)).gigabytes
