"""Claims of arXiv 2502.05759 that its tables support, computed from our rows by its formulas.

Mean gain over the baselines of table 2; seconds per edit as a share of the baselines' mean; seconds
of editing alone as a share of the locate-then-edit methods'. The abstract's 59.24 % and 2.11 %
cannot be derived from the published tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.paper.comparability import departures
from pipeline.paper.figures import SECONDS, seconds_per_edit
from pipeline.paper.layout import Layout, Method, Metric, Section
from pipeline.paper.measured import CellRows, TablePlace, places_of
from pipeline.paper.reference_grids import proxy_streams
from pipeline.results.tables import OverSeeds

SUBJECT = "RLEdit"
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


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """What is computed from what."""

    what: str
    unit: str
    formula: Callable[[_Claim, Look, Sequence[Method]], float | None]  # of ours, or the paper's
    sections: Sequence[Section]
    metric: Metric
    methods: Sequence[Method]

    @property
    def subject(self) -> Method:
        """RLEdit, by the recipe of its release."""
        return next(method for method in self.methods if method.label == SUBJECT)

    @property
    def baselines(self) -> list[Method]:
        """What it is compared with: no other recipe of its own is among them."""
        return [m for m in self.methods if m.editor not in (self.subject.editor, "none")]


def sentences(layout: Layout, cells: Sequence[CellRows]) -> tuple[Sentence, ...]:
    """The claims that a layout's table carries."""
    ours = _Ours(layout, cells)
    return tuple(_sentence(claim, ours) for claim in _claims(layout))


def _claims(layout: Layout) -> Iterator[_Claim]:
    methods, sections = layout.methods, layout.sections
    if "gain" in layout.paper_claims:
        scores = [section for section in sections if len(section.models) == 1]
        for metric in scores[0].metrics:
            what = f"mean gain in {metric.label} over the baselines"
            yield _Claim(what=what, unit="points", formula=_gain, sections=scores, metric=metric,
                         methods=methods)  # fmt: skip
    if "total_time" in layout.paper_claims:
        times = [section for section in sections if len(section.models) > 1]
        what = "seconds per edit with setup, as a share of the baselines'"
        yield _Claim(what=what, unit="%", formula=_share, sections=times,
                     metric=times[0].metrics[0], methods=methods)  # fmt: skip
    if "edit_time" in layout.paper_claims:
        located = [method for method in methods if method.label in (*_LOCATE, SUBJECT)]
        what = "seconds of editing, as a share of the locate-then-edit methods'"
        yield _Claim(what=what, unit="%", formula=_share, sections=sections,
                     metric=sections[0].metrics[-1], methods=located)  # fmt: skip


def _sentence(claim: _Claim, ours: _Ours) -> Sentence:
    # A baseline without a figure in one section is left out there, and named as included where it
    # has one beside RLEdit's at all.
    metric = claim.metric
    held = [s for s in claim.sections if ours(s, claim.subject, metric) is not None]
    there = [m for m in claim.baselines if any(ours(s, m, metric) is not None for s in held)]

    def same(section: Section, method: Method, metric: Metric) -> float | None:
        """The published figure, where ours exists as well."""
        known = ours(section, method, metric) is not None
        return _printed(section, method, metric) if known else None

    return Sentence(
        what=claim.what,
        ours=claim.formula(claim, ours, there),
        same=claim.formula(claim, same, there),
        paper=claim.formula(claim, _printed, claim.baselines),
        unit=claim.unit,
        baselines=tuple(m.label for m in there),
        lacking=tuple(m.label for m in claim.baselines if m not in there),
        departures=ours.departures(held, [claim.subject, *there]),
    )


def _gain(claim: _Claim, look: Look, baselines: Sequence[Method]) -> float | None:
    """Mean of (RLEdit − baseline) over all models, datasets and baselines."""
    gains = [
        ours - theirs
        for section in claim.sections
        if (ours := look(section, claim.subject, claim.metric)) is not None
        for method in baselines
        if (theirs := look(section, method, claim.metric)) is not None
    ]
    return OverSeeds(values=tuple(gains)).mean


def _share(claim: _Claim, look: Look, baselines: Sequence[Method]) -> float | None:
    """RLEdit's seconds over the baselines' mean, in percent, averaged over datasets."""
    shares = []
    for section in claim.sections:
        ours = look(section, claim.subject, claim.metric)
        theirs = [s for m in baselines if (s := look(section, m, claim.metric)) is not None]
        if ours is not None and theirs and math.fsum(theirs) > 0:
            shares.append(100 * ours * len(theirs) / math.fsum(theirs))
    return OverSeeds(values=tuple(shares)).mean


def _printed(section: Section, method: Method, metric: Metric) -> float | None:
    found = section.published(method, metric)
    return None if found is None else found.value


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
                    values.append(seconds_per_edit(cell, place.n_edits, SECONDS[metric.name]))
                    continue
                scores = cell.scores.get((place.n_edits, self._protocols[dataset]), {})
                if (score := scores.get(metric.name)) is not None:
                    values.append(score)
        return OverSeeds(values=tuple(values)).mean

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

    def _places(self, section: Section, method: Method) -> list[tuple[str, TablePlace]]:
        places = places_of(section, method, self._cells, self._proxies)
        return [(dataset, place) for (_, dataset), place in places.items()]
