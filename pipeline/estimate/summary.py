"""An estimate for a terminal: a table per model, then what is needed, then totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.estimate import CellEstimate, Estimate
from pipeline.estimate.device import GB
from pipeline.estimate.fit import misfit_lines
from pipeline.estimate.remedies import remedy_lines

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


def summary(estimate: Estimate, done: Mapping[tuple[str, str], int]) -> list[str]:
    """Lines about the cells to run.

    Args:
        estimate: Of the cells to run.
        done: Finished cells by model and editor label.
    """
    lines: list[str] = []
    for model in dict.fromkeys(c.work.cell.model.name for c in estimate.cells):
        own = [c for c in estimate.cells if c.work.cell.model.name == model]
        lines += ["", *_model(model, own, done)]
    if estimate.cells:
        lines += ["", *_needs(estimate), *_totals(estimate)]
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
        f"{trained:,} batches" if (trained := sum(c.trained for c in cells)) else "-",
        *(duration(s) for s in (setup, edit, score, setup + edit + score)),
        f"{peak:.3g}",
        "no" if any(c.misfit for c in cells) else "yes",
        basis,
    )


def _needs(estimate: Estimate) -> list[str]:
    lines = [f"{'MISSING' if need.missing else 'needs'}: {need.text}" for need in estimate.needs]
    disk = ", ".join(f"{what} {gb:.2g} GB" for what, gb in estimate.disk.items() if gb > 0)
    return [*lines, f"disk: {disk}"]


def _totals(estimate: Estimate) -> list[str]:
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
        f"figures for {device.name}; each cell on {estimate.placement.words}",
    ]
    if on_gpus and estimate.cells[0].work.cell.resources.gpus == 0:
        lines.append(
            "note: the grid gives its cells no GPU; add --set 'resources={gpus: 1}' to run on one"
        )
    lines += [f"DOES NOT FIT: {line}" for line in misfit_lines(estimate.misfits)]
    return [*lines, *remedy_lines([c.work for c in estimate.cells], estimate.placement)]


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
