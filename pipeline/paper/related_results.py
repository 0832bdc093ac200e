"""Figures that other papers print on a table's methods, models and datasets; shown, not judged."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.paper.layout import Layout
from pipeline.paper.references import SCORE_METRICS, Source, references

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
    found: dict[tuple[Source, str, str, str, str], dict[str, float]] = {}
    confidence: dict[Source, str] = {}
    for reference in references().values():
        metric = _ALSO_CALLED.get(reference.metric, reference.metric)
        if (
            metric in SCORE_METRICS
            and reference.source not in own
            and reference.model.removesuffix("-Instruct") in models
            and reference.dataset in datasets
            and _plain(reference.method) in methods
        ):
            place = (
                reference.source,
                reference.model,
                reference.dataset,
                reference.method,
                reference.setting,
            )
            factor = 100 if reference.source.paper in _SHARES else 1
            found.setdefault(place, {})[metric] = factor * reference.value
            confidence[reference.source] = reference.confidence
    return tuple(
        RelatedResult(
            source=source,
            model=model,
            dataset=dataset,
            method=method,
            setting=setting,
            confidence=confidence[source],
            scores=(scores.get("Eff"), scores.get("Gen"), scores.get("Spe")),
        )
        for (source, model, dataset, method, setting), scores in found.items()
    )


def _plain(method: str) -> str:
    """``AlphaEdit (repro)`` → ``AlphaEdit``."""
    return method.partition(" (")[0]
