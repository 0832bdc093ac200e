"""Claims of arXiv 2502.05759 that its tables support, computed from our rows by its formulas.

Mean gain over the baselines of table 2; seconds per edit as a share of the baselines' mean; seconds
of editing alone as a share of the locate-then-edit methods'. The abstract's 59.24 % and 2.11 %
cannot be derived from the published tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.paper.comparability import departures
from pipeline.paper.figures import seconds_per_edit
from pipeline.paper.layout import Layout, Method, Metric, Section
from pipeline.paper.measured import CellRows, Place, find
from pipeline.paper.reference_grids import proxy_streams

SUBJECT = "RLEdit"
_NOT_BASELINES = (SUBJECT, "Pre-edited")
_LOCATE = ("ROME", "MEMIT", "PRUNE", "RECT", "AlphaEdit")

# (section, method, metric) → figure, ours or the paper's.
Look = Callable[[Section, Method, Metric], float | None]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One claim.

    Attributes:
        what: The claim, without its figure.
        ours: From our rows; None where they do not suffice.
        same: The same formula over the published figures of the baselines that ours includes.
        paper: The same over all the published ones.
        unit: "points" or "%".
        baselines: Those that ours includes.
        lacking: Those it does not.
        departures: Why ours cannot be held against the paper's; empty where it can.
    """

    what: str
    ours: float | None
    same: float | None
    paper: float | None
    unit: str
    baselines: tuple[str, ...]
    lacking: tuple[str, ...]
    departures: tuple[str, ...]


def sentences(layout: Layout, cells: Sequence[CellRows]) -> tuple[Sentence, ...]:
    """The claims that a layout's table carries."""
    ours = _Ours(layout, cells)
    return tuple(_sentence(claim, ours) for claim in _claims(layout))


Formula = Callable[[Look, Sequence[Section], Metric, Sequence[Method], Method], float | None]


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """What is computed from what."""

    what: str
    unit: str
    formula: Formula
    sections: Sequence[Section]
    metric: Metric
    methods: Sequence[Method]


def _claims(layout: Layout) -> list[_Claim]:
    found: list[_Claim] = []
    if "gain" in layout.paper_claims:
        scores = [s for s in layout.sections if len(s.models) == 1]
        found += [
            _Claim(
                what=f"mean gain in {metric.label} over the baselines",
                unit="points",
                formula=_gain,
                sections=scores,
                metric=metric,
                methods=layout.methods,
            )
            for metric in scores[0].metrics
        ]
    if "total_time" in layout.paper_claims:
        times = [s for s in layout.sections if len(s.models) > 1]
        found.append(
            _Claim(
                what="seconds per edit with setup, as a share of the baselines'",
                unit="%",
                formula=_share,
                sections=times,
                metric=times[0].metrics[0],
                methods=layout.methods,
            )
        )
    if "edit_time" in layout.paper_claims:
        found.append(
            _Claim(
                what="seconds of editing, as a share of the locate-then-edit methods'",
                unit="%",
                formula=_share,
                sections=layout.sections,
                metric=layout.sections[0].metrics[-1],
                methods=[m for m in layout.methods if m.label in (*_LOCATE, SUBJECT)],
            )
        )
    return found


def _sentence(claim: _Claim, measured: _Ours) -> Sentence:
    sections, metric = claim.sections, claim.metric
    subject = next(m for m in claim.methods if m.label == SUBJECT)
    baselines = [m for m in claim.methods if m.label not in _NOT_BASELINES]
    # A baseline without a figure in one section is left out there, and named as included where it
    # has one beside RLEdit's at all.
    held = [s for s in sections if measured(s, subject, metric) is not None]
    there = [m for m in baselines if any(measured(s, m, metric) is not None for s in held)]

    def same(section: Section, method: Method, metric: Metric) -> float | None:
        """The published figure, where ours exists as well."""
        ours = measured(section, method, metric)
        return None if ours is None else _printed(section, method, metric)

    return Sentence(
        what=claim.what,
        ours=claim.formula(measured, sections, metric, there, subject),
        same=claim.formula(same, sections, metric, there, subject),
        paper=claim.formula(_printed, sections, metric, baselines, subject),
        unit=claim.unit,
        baselines=tuple(m.label for m in there),
        lacking=tuple(m.label for m in baselines if m not in there),
        departures=measured.departures(held, [subject, *there]),
    )


def _gain(
    look: Look,
    sections: Sequence[Section],
    metric: Metric,
    baselines: Sequence[Method],
    subject: Method,
) -> float | None:
    """Mean of (RLEdit − baseline) over all models, datasets and baselines."""
    gains = [
        ours - theirs
        for section in sections
        if (ours := look(section, subject, metric)) is not None
        for method in baselines
        if (theirs := look(section, method, metric)) is not None
    ]
    return math.fsum(gains) / len(gains) if gains else None


def _share(
    look: Look,
    sections: Sequence[Section],
    metric: Metric,
    baselines: Sequence[Method],
    subject: Method,
) -> float | None:
    """RLEdit's seconds over the baselines' mean, in percent, averaged over datasets."""
    shares = []
    for section in sections:
        ours = look(section, subject, metric)
        theirs = [s for m in baselines if (s := look(section, m, metric)) is not None]
        if ours is not None and theirs and math.fsum(theirs) > 0:
            shares.append(100 * ours * len(theirs) / math.fsum(theirs))
    return math.fsum(shares) / len(shares) if shares else None


def _printed(section: Section, method: Method, metric: Metric) -> float | None:
    found = section.published(method, metric)
    return None if found is None else found.value


_PARTS: Mapping[str, str] = {
    "seconds_per_edit": "total",
    "setup_seconds_per_edit": "setup",
    "edit_seconds_per_edit": "edit",
}


class _Ours:
    """What our rows say: called like `_printed`.

    Args:
        layout: Whose places.
        cells: The rows.
    """

    def __init__(self, layout: Layout, cells: Sequence[CellRows]) -> None:
        self._protocols = layout.protocols
        self._proxies = proxy_streams(layout.name)
        self._cells = cells

    def __call__(self, section: Section, method: Method, metric: Metric) -> float | None:
        """Mean over models, datasets and seeds of what our rows say, over those that say it."""
        values: list[float] = []
        for dataset, place in self._places(section, method):
            for cell in place.done:
                if metric.basis == "seconds":
                    values.append(seconds_per_edit(cell, place.n_edits, _PARTS[metric.name]))
                    continue
                scores = cell.scores.get((place.n_edits, self._protocols[dataset]), {})
                if (score := scores.get(metric.name)) is not None:
                    values.append(score)
        return math.fsum(values) / len(values) if values else None

    def departures(self, sections: Sequence[Section], methods: Sequence[Method]) -> tuple[str, ...]:
        """What was otherwise in any of these places than in the published runs."""
        found = [
            departure
            for section in sections
            for method in methods
            for dataset, place in self._places(section, method)
            for departure in departures(place, dataset, "", self._protocols[dataset])
        ]
        return tuple(dict.fromkeys(found))

    def _places(self, section: Section, method: Method) -> list[tuple[str, Place]]:
        proxy = self._proxies.get(section.stream)
        return [
            (dataset, find(self._cells, model, dataset, method, section.stream, proxy))
            for model in section.models
            for dataset in section.datasets
        ]
