"""Estimate for a terminal: tables per model, prerequisites, totals, and what would make it fit."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import yaml

from pipeline.config.grid import EditorEntry
from pipeline.config.resources import ResourcesEntry
from pipeline.plan.estimate import CellEstimate, Estimate
from pipeline.plan.estimate.memory import (
    GB,
    Placement,
    out_of_memory_lines,
    peak_gb,
    shardable,
    smallest_fit,
    widest,
)
from pipeline.plan.estimate.wall_clock import unit_of, wall_clock
from pipeline.plan.estimate.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Options under which the cells of some editors fit.

    Attributes:
        editors: Whom it helps.
        words: What they run on then.
        resources: The same, as a grid's entry.
        gpu_memory_gb: Memory that their GPUs need, where it is more than those have.
    """

    editors: tuple[EditorEntry, ...]
    words: str
    resources: ResourcesEntry
    gpu_memory_gb: int | None = None

    def options(self, given: ResourcesEntry) -> list[str]:
        """Options to add to `rledit plan`; without the memory, to `rledit run`.

        Args:
            given: The grid's own resources, which need not be said again.
        """
        found = []
        if self.gpu_memory_gb is not None:
            found += ["--gpu-memory-gb", str(self.gpu_memory_gb)]
        if self.resources != given:
            found += ["--set", f"resources={_flow(_unlike_default(self.resources))}"]
        return [*found, "--set", f"editors={_flow([_unlike_default(e) for e in self.editors])}"]

    def line(self, given: ResourcesEntry) -> str:
        """Editors, words and options, which are accepted as they stand."""
        names = ", ".join(e.editor + (f"/{e.variant}" if e.variant else "") for e in self.editors)
        return f"{names}: {self.words}: {shlex.join(self.options(given))}"


def remedies(works: Sequence[Workload], placement: Placement) -> list[Remedy]:
    """One for every way of fitting that an editor of these cells needs; none where all fit."""
    if placement.device.memory_gb is None or not works:
        return []
    own: dict[str, list[Workload]] = {}
    for work in works:
        own.setdefault(work.cell.label, []).append(work)
    if all(_fits(cells, placement) for cells in own.values()):
        return []
    ways: dict[Any, list[list[Workload]]] = {}
    for cells in own.values():
        ways.setdefault(_way(cells, placement), []).append(cells)
    return [_remedy(way, groups, placement) for way, groups in ways.items()]


def remedy_lines(works: Sequence[Workload], placement: Placement) -> list[str]:
    """What would fit, a line for every call."""
    found = remedies(works, placement)
    if not found:
        return []
    resources = works[0].cell.resources
    return [
        "WOULD FIT, each line a call of its own with these options, all for the same table:",
        *(f"  {remedy.line(resources)}" for remedy in found),
    ]


_AS_IT_IS, _LARGER, _LARGER_SHARDED = "as it is", "larger", "larger and sharded"


_LARGEST_GB = 141  # of the GPUs that one can get: what needs more has to be sharded as well


def _way(cells: Sequence[Workload], placement: Placement) -> str | Placement:
    """How an editor's cells would fit: as they are, on a placement, or on larger GPUs."""
    if _fits(cells, placement):
        return _AS_IT_IS
    if (other := smallest_fit(cells, placement)) is not None:
        return other
    whole = peak_gb(cells, placement) <= _LARGEST_GB
    return _LARGER if whole or not all(map(shardable, cells)) else _LARGER_SHARDED


def _remedy(
    way: str | Placement, groups: Sequence[Sequence[Workload]], placement: Placement
) -> Remedy:
    editors = tuple(cells[0].cell.editor for cells in groups)
    every = [work for cells in groups for work in cells]
    given = every[0].cell.resources
    if isinstance(way, Placement):
        return Remedy(editors=editors, words=way.words, resources=_on(way, given))
    if way == _AS_IT_IS:
        words = f"as it is, {placement.words}"
        return Remedy(editors=editors, words=words, resources=_on(placement, given))
    place, words = placement, "no sharding helps, take GPUs of at least {} GB"
    if way == _LARGER_SHARDED:
        place = widest(placement)
        words = (
            f"every rank keeps what no sharding divides, take {place.ranks} GPUs of at least {{}} "
            "GB, smaller batches, or fewer edited layers"
        )
    least = math.ceil(peak_gb(every, place))
    return Remedy(
        editors=editors,
        words=words.format(least),
        resources=_on(place, given),
        gpu_memory_gb=least,
    )


def _fits(cells: Sequence[Workload], placement: Placement) -> bool:
    has = placement.device.memory_gb
    return has is None or peak_gb(cells, placement) <= has


def _on(placement: Placement, given: ResourcesEntry) -> ResourcesEntry:
    """A grid's resources, with what gives its cells a placement on GPUs."""
    return replace(
        given,
        gpus=1.0 if placement.sharded or not given.gpus else given.gpus,
        ranks=placement.ranks,
        sharding="zero3" if placement.sharded else "none",
        offload=placement.offload,
    )


def _unlike_default(entry: EditorEntry | ResourcesEntry) -> dict[str, Any]:
    """An entry as a grid writes it, without what it has anyway."""
    found = {}
    for f in fields(entry):
        value = getattr(entry, f.name)
        if f.default_factory is not MISSING:
            default: Any = f.default_factory()
        else:
            default = f.default
        if value != default:
            whole = isinstance(value, float) and value.is_integer()
            found[f.name] = int(value) if whole else value
    return found


def _flow(value: Any) -> str:
    """YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.strip()


_HEADER = (
    "editor",
    "cells",
    "done",
    "trained on",
    "setup",
    "edit",
    "score",
    "total",
    "peak GB",
    "fits",
    "times by",
)


def assumption_line(placement: Placement, room: int) -> str:
    """What the figures of a plan are for.

    Args:
        room: GPUs there are, or cores.
    """
    device = placement.device
    if device.memory_gb is None:
        what = f"{_counted(room, 'core')} (--workers): {device.name} a rank"
    else:
        what = f"{_counted(room, 'GPU')} (--gpus): {device.name}, other memory by --gpu-memory-gb"
    return (
        f"figures assume {what}; each cell on {placement.words}; of cells like those of the lake, "
        "theirs"
    )


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n > 1)}"


def summary(estimate: Estimate, done: Mapping[tuple[str, str], int], room: int = 1) -> list[str]:
    """Lines about the cells to run.

    Args:
        estimate: Of the cells to run.
        done: Finished cells by model and editor label.
        room: GPUs there are, or cores.
    """
    lines: list[str] = []
    for model in dict.fromkeys(c.work.cell.model.name for c in estimate.cells):
        own = [c for c in estimate.cells if c.work.cell.model.name == model]
        lines += ["", *_model(model, own, done)]
    if estimate.cells:
        lines += ["", *_needs(estimate), *_totals(estimate, room)]
    return lines


def _model(
    model: str, cells: Sequence[CellEstimate], done: Mapping[tuple[str, str], int]
) -> list[str]:
    first = cells[0].work
    architecture = first.architecture
    size = architecture.parameters * first.dtype_bytes / GB
    precision = {2: "bfloat16", 4: "float32", 8: "float64"}[first.dtype_bytes]
    part = "" if architecture.part_of is None else f" (text part of {architecture.part_of})"
    packed = architecture.quantised
    title = (
        f"{model}: {architecture.family}{part}, {_millions(architecture.parameters)} M parameters, "
        f"{size:.3g} GB in {precision}; sizes: {architecture.source}"
        + ("" if packed is None else f"; dequantised from {packed.words}")
    )
    rows: list[tuple[str, ...]] = [_HEADER]
    for label in dict.fromkeys(c.work.cell.label for c in cells):
        own = [c for c in cells if c.work.cell.label == label]
        rows.append(_row(label, own, done.get((model, label), 0)))
    return [title, *aligned(rows)]


def _millions(parameters: int) -> str:
    millions = parameters / 1e6
    return f"{millions:,.0f}" if millions >= 1000 else f"{millions:.4g}"


def _row(label: str, cells: Sequence[CellEstimate], done: int) -> tuple[str, ...]:
    setup = sum(c.seconds.setup + c.shared for c in cells)
    edit = sum(c.seconds.edit for c in cells)
    score = sum(c.seconds.score for c in cells)
    peak = max(c.memory_gb for c in cells)
    measured = sum(c.seconds.measured for c in cells)
    basis = "the lake" if measured == len(cells) else "the model" if not measured else "both"
    return (
        label,
        str(len(cells)),
        str(done),
        _trained_on(cells),
        *(duration(s) for s in (setup, edit, score, setup + edit + score)),
        f"{peak:.3g}",
        "no" if any(c.out_of_memory for c in cells) else "yes",
        basis,
    )


def _trained_on(cells: Sequence[CellEstimate]) -> str:
    """Batches of training; the limit, where one may end before it."""
    trained = sum(c.trained for c in cells)
    if not trained:
        return "-"
    early = any(c.trained and c.work.cell.stopping is not None for c in cells)
    return f"{'at most ' if early else ''}{trained:,} batches"


def _needs(estimate: Estimate) -> list[str]:
    lines = []
    for need in estimate.needs:
        lines.append(f"{'MISSING' if need.missing else 'needs'}: {need.text}")
        lines += [f"  to be had: {need.source}"] if need.source else []
    disk = ", ".join(f"{what} {gb:.2g} GB" for what, gb in estimate.disk.items() if gb > 0)
    return [*lines, f"disk: {disk}"]


def _totals(estimate: Estimate, room: int) -> list[str]:
    device = estimate.placement.device
    on_gpus = device.memory_gb is not None
    fetched = sum(need.download_gb or 0.0 for need in estimate.needs)
    unknown = sum(need.download_gb is None for need in estimate.needs)
    beside = f" and {unknown} files of unknown size" if unknown else ""
    peak = max(c.memory_gb for c in estimate.cells)
    share = "GPU" if on_gpus else "core"
    lines = [
        f"total: {estimate.hours:,.3g} {share}-hours, peak {peak:.3g} GB per rank, "
        f"disk {sum(estimate.disk.values()) + fetched:.3g} GB, downloads {fetched:.3g} GB"
        f"{beside}",
        wall_clock_line(estimate, room),
    ]
    if on_gpus and estimate.cells[0].work.cell.resources.gpus == 0:
        lines.append(
            "note: the grid gives its cells no GPU; add --set 'resources={gpus: 1}' to run on one"
        )
    lines += [f"DOES NOT FIT: {line}" for line in out_of_memory_lines(estimate.out_of_memory_cells)]
    return [*lines, *remedy_lines([c.work for c in estimate.cells], estimate.placement)]


def wall_clock_line(estimate: Estimate, room: int) -> str:
    """How long the cells take together on what there is, and at the least."""
    found = wall_clock(estimate, room)
    option = "--gpus" if unit_of(estimate.placement) == "GPU" else "--workers"
    on = _counted(room, unit_of(estimate.placement))
    line = f"wall-clock: about {duration(found.seconds)} on {on}"
    if found.seconds <= 1.05 * found.least:
        return f"{line}; more bring nothing, one piece of work waits for the other"
    return f"{line}, at least {duration(found.least)} on any number; {option} N tells it for N"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, with two or three digits."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 9.5 else f"{value:.1f} {unit}"
    return "0" if seconds < 0.05 else f"{seconds:.1f} s"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
