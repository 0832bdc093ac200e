"""Building blocks of a published table: sections, lines, and the figures in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.paper.references import Reference, Source, references

Stream = tuple[int, int]  # (batches, edits per batch)
Basis = Literal["score", "seconds", "memory", "curve", "composite", "ratio"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a cell.

    Attributes:
        name: What it is called in CSV, and for scores the column of the view `runs`.
        label: What a table's header says.
        basis: What it is read from: a ``score`` of the section's protocol, ``seconds`` and
            ``memory`` of the cell, a ``curve`` of the view `curves`, a ``composite`` of scores, or
            a ``ratio`` of seconds to the fastest method.
        reference: Its name among the published figures; "" where none is published.
        curves: Names in the view `curves`, of which the mean is taken; none: the metric's own.
        factor: What a published figure is multiplied by: shares become percent.
        digits: Decimals shown.
    """

    name: str
    label: str
    basis: Basis = "score"
    reference: str = ""
    curves: tuple[str, ...] = ()
    factor: float = 1.0
    digits: int = 2


@dataclass(frozen=True, kw_only=True)
class Method:
    """One line.

    Attributes:
        label: Its name among the published figures.
        editor: Its name here.
        shown: What the line says, where that is not the label.
    """

    label: str
    editor: str
    variant: str = ""
    shown: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Methods by metrics on some models, datasets and one stream.

    Attributes:
        models: Models whose figures are averaged; one, mostly.
        datasets: Datasets, likewise.
        edits_at: Edits after which curves are read; None: at the stream's end.
        source: Where the references stand; None where nothing is published.
        reference_model: The model's name there, where it is not the first of `models`.
        reference_dataset: Likewise.
        reference_setting: The setting's name there, where it is not the stream's ``n×m``.
    """

    models: tuple[str, ...]
    datasets: tuple[str, ...]
    stream: Stream
    metrics: tuple[Metric, ...]
    edits_at: int | None = None
    source: Source | None = None
    reference_model: str = ""
    reference_dataset: str = ""
    reference_setting: str = ""

    @property
    def title(self) -> str:
        """Models, datasets and stream."""
        at = f", after {self.edits_at:,} edits" if self.edits_at is not None else ""
        return f"{self.subject} · {self.dataset} · {self.stream[0]}×{self.stream[1]}{at}"

    @property
    def subject(self) -> str:
        """Its model, or of how many the mean is taken."""
        return self.models[0] if len(self.models) == 1 else f"mean of {len(self.models)}"

    @property
    def dataset(self) -> str:
        """Its datasets in one word."""
        return " + ".join(self.datasets)

    def published(self, method: Method, metric: Metric) -> Reference | None:
        """The published figure of a method, in our units; None where there is none."""
        if self.source is None or not metric.reference:
            return None
        model = self.reference_model or self.models[0]
        dataset = self.reference_dataset or self.datasets[0]
        setting = self.reference_setting or f"{self.stream[0]}x{self.stream[1]}"
        place = (self.source, model, dataset, method.label, setting, metric.reference)
        found = references().get(place)
        if found is None or metric.factor == 1.0:
            return found
        std = None if found.std is None else found.std * metric.factor
        return replace(found, value=found.value * metric.factor, std=std)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A published table or figure as tables of figures; it has the name of its grid.

    Attributes:
        protocols: Protocol of each dataset: what the published figures were measured by.
        notes: What a reader must know.
        paper_claims: Which of the paper's sentences are computed below the table.
    """

    name: str
    title: str
    methods: tuple[Method, ...]
    sections: tuple[Section, ...]
    protocols: Mapping[str, str]
    notes: tuple[str, ...] = ()
    paper_claims: tuple[Literal["gain", "total_time", "edit_time"], ...] = ()

    @property
    def model_names(self) -> tuple[str, ...]:
        """Its models, in order."""
        return tuple(dict.fromkeys(m for section in self.sections for m in section.models))
