"""Figures of a published table from cells: means, spreads over seeds, bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.paper.layout import Metric
from pipeline.paper.measured import CellRows, TablePlace
from pipeline.results.protocol_captions import sorted_protocols
from pipeline.results.tables import OverSeeds

RESAMPLES = 1000
SECONDS = {  # metric → part of a cell's seconds
    "seconds_per_edit": "total",
    "setup_seconds_per_edit": "setup",
    "edit_seconds_per_edit": "edit",
}
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Ours(OverSeeds):
    """A figure of ours.

    Attributes:
        seeds: Of its values, in their order.
        interval: 95 % bootstrap interval over the edits, for scores of one cell per seed.
        protocol: What it was scored by; "" for figures that are no scores.
    """

    seeds: tuple[int, ...] = ()
    interval: tuple[float, float] | None = None
    protocol: str = ""


def over_seeds(cells: Iterable[CellRows], values: Iterable[float | None]) -> Ours:
    """A figure from cells and what each has, left out where it has nothing."""
    pairs = zip(cells, values, strict=True)
    known = {cell.seed: value for cell, value in pairs if value is not None}
    return Ours(values=tuple(known.values()), seeds=tuple(known))


def averaged(parts: Sequence[Ours]) -> Ours:
    """Mean of figures, seed by seed, over the seeds that all of them have."""
    by_seed = [dict(zip(part.seeds, part.values, strict=True)) for part in parts]
    seeds = tuple(seed for seed in by_seed[0] if all(seed in own for own in by_seed))
    means = tuple(math.fsum(own[seed] for own in by_seed) / len(parts) for seed in seeds)
    return Ours(values=means, seeds=seeds)


def measure(metric: Metric, place: TablePlace, protocol: str, edits_at: int | None = None) -> Ours:
    """A figure at one place.

    Args:
        protocol: What scores are read by; where a cell was not scored by it, the first protocol
            that it was scored by, which the caller has to say.
        edits_at: Edits of the published stream after which curves are read; None: at its end.
    """
    if metric.basis in ("score", "composite"):
        return _scores(metric, place, protocol)
    found: list[float | None]
    if metric.basis == "seconds":
        part = SECONDS[metric.name]
        found = [seconds_per_edit(cell, place.n_edits, part) for cell in place.done]
    elif metric.basis == "memory":
        found = [cell.peak_memory_gb for cell in place.done]
    else:
        found = [_curve(metric, cell, place.edits_for(edits_at)) for cell in place.done]
    return over_seeds(place.done, found)


def seconds_per_edit(cell: CellRows, n_edits: int, part: str = "total") -> float:
    """Seconds per edit of a cell's stream, or of its first `n_edits`.

    Setup is training and the sum of key covariance, as far as they were made for the cell.
    """
    setup = cell.train_seconds + cell.curves.get("statistics_seconds", {}).get(0, 0.0)
    edits = cell.edit_seconds
    if n_edits < cell.n_edits:
        edits = math.fsum(
            seconds for at, seconds in cell.curves.get("edit_seconds", {}).items() if at <= n_edits
        )
    return {"total": setup + edits, "setup": setup, "edit": edits}[part] / n_edits


def interval(cells: Sequence[CellRows], at: int, protocol: str, score: str) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over edits, averaged over seeds.

    Edits are drawn with replacement within each cell. As few scores differ, drawing how often each
    occurs is the same and costs nothing.
    """
    rng = np.random.default_rng(_SEED)
    means = np.zeros(RESAMPLES)
    for cell in cells:
        spread = cell.spreads[at, protocol, score]
        scores = np.array(sorted(spread))
        counts = np.array([spread[s] for s in sorted(spread)])
        n = int(counts.sum())
        means += rng.multinomial(n, counts / n, size=RESAMPLES) @ scores / n / len(cells)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _scores(metric: Metric, place: TablePlace, wanted: str) -> Ours:
    cells = place.done
    at = place.n_edits
    there = sorted_protocols({protocol for cell in cells for n, protocol in cell.scores if n == at})
    if not there:
        return Ours()
    protocol = wanted if wanted in there else there[0]
    rows = [cell.scores.get((at, protocol), {}) for cell in cells]
    if metric.basis == "composite":
        values = [_composite(row) for row in rows]
    else:
        values = [row.get(metric.name) for row in rows]
    kept = over_seeds(cells, values)
    spreads = all((at, protocol, metric.name) in cell.spreads for cell in cells)
    return replace(
        kept,
        interval=interval(cells, at, protocol, metric.name) if kept.values and spreads else None,
        protocol=protocol,
    )


def _composite(row: dict[str, float | None]) -> float | None:
    """(Eff + Gen + Spe / 2) / 2.5, the figure 6 of arXiv 2502.05759."""
    parts = [row.get(name) for name in ("efficacy", "generalization", "specificity")]
    if any(part is None for part in parts):
        return None
    eff, gen, spe = (float(part) for part in parts if part is not None)
    return (eff + gen + 0.5 * spe) / 2.5


def _curve(metric: Metric, cell: CellRows, at: int | None) -> float | None:
    """Mean of the metric's curves after so many edits; None unless all have a value there."""
    if at is None:
        return None
    values = [cell.curves.get(name, {}).get(at) for name in metric.curves or (metric.name,)]
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None
