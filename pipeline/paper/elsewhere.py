"""What other articles print on a table's methods, models and datasets: shown, never judged."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.paper.layout import Layout
from pipeline.paper.references import Reference, Source, references

_COLUMNS = ("Eff", "Gen", "Spe")


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """One method's scores in another source, as that one prints them."""

    source: Source
    model: str
    dataset: str
    method: str
    setting: str
    confidence: str
    scores: tuple[float | None, float | None, float | None]


def elsewhere(layout: Layout) -> tuple[Elsewhere, ...]:
    """Scores of a layout's methods on its models and datasets from all but its own sources.

    Streams and protocols are those of the other articles: nothing of it is comparable as it stands.
    """
    own = {section.source for section in layout.sections}
    models = {model for section in layout.sections for model in section.models}
    datasets = {dataset for section in layout.sections for dataset in section.datasets}
    methods = {_plain(method.label) for method in layout.methods}
    found: dict[tuple[Source, str, str, str, str], dict[str, Reference]] = {}
    for reference in references().values():
        if (
            reference.metric in _COLUMNS
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
            found.setdefault(place, {})[reference.metric] = reference
    return tuple(
        Elsewhere(
            source=source,
            model=model,
            dataset=dataset,
            method=method,
            setting=setting,
            confidence=next(iter(scores.values())).confidence,
            scores=tuple(scores[c].value if c in scores else None for c in _COLUMNS),  # type: ignore[arg-type]
        )
        for (source, model, dataset, method, setting), scores in found.items()
    )


def _plain(method: str) -> str:
    """``AlphaEdit (repro)`` → ``AlphaEdit``."""
    return method.partition(" (")[0]
