"""Figures that other papers print on a table's methods, models and datasets; shown, not judged."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.paper.layout import Layout
from pipeline.paper.references import SCORE_METRICS, Source, references

_Place = tuple[Source, str, str, str, str]  # source, model, dataset, method, setting
_ALSO_CALLED = {"Rel": "Eff", "Loc": "Spe"}  # reliability and locality
_SHARES = ("MEMOIR", "SimIE")  # papers that print 0.84 where others print 84


@dataclass(frozen=True, kw_only=True)
class RelatedResult:
    """One method's scores in another source, in percent."""

    source: Source
    model: str
    dataset: str
    method: str
    setting: str
    confidence: str
    scores: tuple[float | None, float | None, float | None]


def related_results(layout: Layout) -> tuple[RelatedResult, ...]:
    """Scores of a layout's methods on its models and datasets from all but its own sources.

    Streams and protocols are those of the other papers: nothing of it is comparable as it stands.
    """
    own = {section.source for section in layout.sections}
    models = {model for section in layout.sections for model in section.models}
    datasets = {dataset for section in layout.sections for dataset in section.datasets}
    methods = {_plain(method.label) for method in layout.methods}
    found: dict[_Place, dict[str, float]] = {}
    confidence: dict[Source, str] = {}
    for one in references().values():
        metric = _ALSO_CALLED.get(one.metric, one.metric)
        if (
            metric in SCORE_METRICS
            and one.source not in own
            and one.model.removesuffix("-Instruct") in models
            and one.dataset in datasets
            and _plain(one.method) in methods
        ):
            place = (one.source, one.model, one.dataset, one.method, one.setting)
            factor = 100 if one.source.paper in _SHARES else 1
            found.setdefault(place, {})[metric] = factor * one.value
            confidence[one.source] = one.confidence
    return tuple(
        RelatedResult(
            source=source, model=model, dataset=dataset, method=method, setting=setting,
            confidence=confidence[source],
            scores=(scores.get("Eff"), scores.get("Gen"), scores.get("Spe")),
        )
        for (source, model, dataset, method, setting), scores in found.items()
    )  # fmt: skip


def _plain(method: str) -> str:
    """``AlphaEdit (repro)`` → ``AlphaEdit``."""
    return method.partition(" (")[0]
