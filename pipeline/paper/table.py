"""A published table beside ours: every figure with its reference, difference and verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.config.presets import OWN, preset_setting
from pipeline.paper.comparability import departures, stream_name
from pipeline.paper.figures import Ours, averaged, measure, over_seeds, seconds_per_edit
from pipeline.paper.layout import Layout, Method, Metric, Section
from pipeline.paper.layouts import LAYOUTS
from pipeline.paper.measured import CellRows, TablePlace, places_of, read_cells
from pipeline.paper.paper_claims import Sentence, sentences
from pipeline.paper.reference_grids import proxy_streams
from pipeline.paper.references import Reference, published
from pipeline.paper.verdicts import Verdict, judge
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import remark_in
from pipeline.results.model_names import row_titles
from pipeline.results.sheets import ABSENT, MARK
from rledit.editors import editor_class


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the table, where it was read, and what was otherwise there than published."""

    metric: Metric
    protocol: str
    ours: Ours
    reference: Reference | None
    verdict: Verdict
    places: tuple[TablePlace, ...]
    departures: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        """Ours minus the published one."""
        if self.ours.mean is None or self.reference is None:
            return None
        return self.ours.mean - self.reference.value


@dataclass(frozen=True, kw_only=True)
class PaperLine:
    """One method in one section."""

    method: Method
    own_setting: bool
    figures: tuple[Figure, ...]

    @property
    def label(self) -> str:
        """What the line is called, with its marks."""
        return self.name + ("†" if self.marked_own else "") + (MARK if self.remarks else "")

    @property
    def name(self) -> str:
        """What the method is called."""
        return self.method.shown or self.method.label

    @property
    def marked_own(self) -> bool:
        """Whether its settings are ours, and its name does not say so."""
        return self.own_setting and not self.method.shown

    @property
    def remarks(self) -> list[str]:
        """What must be said of its cells, each once."""
        cells = (cell for f in self.figures for place in f.places for cell in place.done)
        return list(dict.fromkeys(text for cell in cells if (text := remark_in(cell.resolved))))


@dataclass(frozen=True, kw_only=True)
class PaperBlock:
    """One section with its lines."""

    section: Section
    protocol: str
    lines: tuple[PaperLine, ...]

    @property
    def read(self) -> list[str]:
        """Where ours was read, if that is elsewhere than the published figures."""
        at = self.section.edits_at
        places = [p for line in self.lines for f in line.figures for p in f.places if p.done]
        read = {(p.stream, p.edits_for(at)): None for p in places if p.edits_for(at) is not None}
        if all(stream == self.section.stream for stream, _ in read):
            return []
        return [
            stream_name(stream) + ("" if at is None else f" after {n:,} edits")
            for stream, n in read
        ]

    @property
    def title(self) -> str:
        """The section's, and where ours was read, if that is elsewhere."""
        read = f"; read here: {', '.join(self.read)}" if self.read else ""
        return f"{self.section.title}{read}"


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A published table beside ours.

    Attributes:
        scale: What kind of models our figures are about; "" where there are none.
        models: Name and title of each model, by its name in the layout: proxies are called so.
        paper_claims: The paper's sentences, computed from our rows.
    """

    layout: Layout
    scale: str
    models: Mapping[str, tuple[str, str]]
    blocks: tuple[PaperBlock, ...]
    paper_claims: tuple[Sentence, ...]
    notes: tuple[str, ...]

    @property
    def proxies(self) -> bool:
        """Whether our figures are those of small models that stand for the published ones."""
        return self.scale in ("proxy", "world")

    @property
    def verdicts(self) -> list[Verdict]:
        """All verdicts, in order."""
        return [f.verdict for block in self.blocks for line in block.lines for f in line.figures]

    @property
    def exit_code(self) -> int:
        """What ``--check`` exits with: 1 if a figure differs, 2 if none was comparable, else 0."""
        kinds = {verdict.kind for verdict in self.verdicts}
        if "differs" in kinds:
            return 1
        return 0 if "reproduced" in kinds else 2


def paper_table(lake: str | Lake, name: str, scale: str | None = None) -> PaperTable:
    """The table of a grid that has a layout.

    Args:
        scale: Which results; None: the published weights' if there are any, else proxy models'.
    """
    layout = LAYOUTS[name]()
    cells = read_cells(lake, name, scale)
    blocks = tuple(_block(section, layout, cells) for section in layout.sections)
    shown = cells[0].scale if cells else ""
    models = _models(layout, cells, shown)
    notes = [*layout.notes, *_notes(blocks, shown, models)]
    return PaperTable(
        layout=layout,
        scale=shown,
        models=models,
        blocks=blocks,
        paper_claims=sentences(layout, cells),
        notes=tuple(notes),
    )


def _block(section: Section, layout: Layout, cells: Sequence[CellRows]) -> PaperBlock:
    protocols = {dataset: layout.protocols[dataset] for dataset in section.datasets}
    proxies = proxy_streams(layout.name)
    places = {method: places_of(section, method, cells, proxies) for method in layout.methods}
    edited = [own for method, own in places.items() if method.editor not in (None, "none")]
    spent = (
        seconds_per_edit(cell, place.n_edits)
        for own in edited
        for place in own.values()
        for cell in place.done
    )
    fastest = min(spent, default=None)
    lines = []
    for method, own in places.items():
        figures = tuple(
            _figure(metric, section, method, own, protocols, fastest) for metric in section.metrics
        )
        lines.append(
            PaperLine(method=method, own_setting=_is_own(method, section), figures=figures)
        )
    named = " + ".join(dict.fromkeys(protocols.values()))
    return PaperBlock(section=section, protocol=named, lines=tuple(lines))


def _figure(
    metric: Metric,
    section: Section,
    method: Method,
    places: Mapping[tuple[str, str], TablePlace],
    protocols: Mapping[str, str],
    fastest: float | None,
) -> Figure:
    parts = {
        where: _ratio(place, fastest)
        if metric.basis == "ratio"
        else measure(metric, place, protocols[where[1]], section.edits_at)
        for where, place in places.items()
    }
    ours = _averaged(list(parts.values()))
    reference = section.published(method, metric)
    against: list[str] = []
    for where, place in places.items():
        against += departures(place, where[1], parts[where].protocol, protocols[where[1]])
    lacking = [where for where, part in parts.items() if part.mean is None]
    if lacking and len(lacking) < len(parts):
        against.append(f"mean of {len(parts) - len(lacking)} of {len(parts)} cells")
    missing = dict.fromkeys(places[where].missing(section.edits_at) for where in lacking)
    verdict = judge(
        ours.mean,
        reference,
        missing="; ".join(missing) or "its cells have no seed in common",
        departures=tuple(dict.fromkeys(against)),
    )
    return Figure(
        metric=metric,
        protocol=ours.protocol or " + ".join(dict.fromkeys(protocols.values())),
        ours=ours,
        reference=reference,
        verdict=verdict,
        places=tuple(places.values()),
        departures=tuple(dict.fromkeys(against)),
    )


def _averaged(parts: Sequence[Ours]) -> Ours:
    """Mean over cells, seed by seed; the interval of a mean of cells is not computed."""
    there = [part for part in parts if part.values]
    if len(parts) == 1 or not there:
        return parts[0]
    protocol = " + ".join(dict.fromkeys(part.protocol for part in there if part.protocol))
    return replace(averaged(there), protocol=protocol)


def _ratio(place: TablePlace, fastest: float | None) -> Ours:
    """Seconds per edit over the least of the section's methods."""
    if not fastest or any(cell.editor == "none" for cell in place.done):
        return Ours()
    ratios = [seconds_per_edit(cell, place.n_edits) / fastest for cell in place.done]
    return over_seeds(place.done, ratios)


def _is_own(method: Method, section: Section) -> bool:
    """Whether the method's settings here are ours because no paper gives them."""
    if method.editor == "none":
        return False
    target_modules = editor_class(method.editor).target_modules
    presets = (published()["weights"].get(model) for model in section.models)
    return any(
        preset_setting(preset, method.editor, dataset.lower(), target_modules).origin == OWN
        for preset in presets
        if preset is not None
        for dataset in section.datasets
    )


def _models(layout: Layout, cells: Sequence[CellRows], scale: str) -> dict[str, tuple[str, str]]:
    """Name and title of each model, and of the means over several of them."""
    several = " (proxies)" if scale in ("proxy", "world") else ""
    found = {}
    for section in layout.sections:
        mean = f"{section.subject} models{several}"
        found[section.subject] = (mean, mean)
    rows = [
        {"scale": scale, "model": model, "preset": True, "parameters": parameters}
        for model in layout.model_names
        for parameters in {None, *(c.resolved.get("parameters") for c in cells if c.model == model)}
    ]
    return found | {model: titles for (_, model), titles in row_titles(rows).items()}


def _notes(
    blocks: Sequence[PaperBlock], scale: str, models: Mapping[str, tuple[str, str]]
) -> list[str]:
    notes = []
    if scale in ("proxy", "world"):
        notes.append(
            "Figures of proxy models show that the grid runs; they say nothing about the models."
        )
    lines = [(block, line) for block in blocks for line in block.lines]
    own: dict[str, dict[str, None]] = {}
    for block, line in lines:
        if line.marked_own and len(block.section.models) == 1:
            own.setdefault(line.name, {})[models[block.section.subject][0]] = None
    places: dict[str, list[str]] = {}
    for name, where in own.items():
        places.setdefault(", ".join(where), []).append(name)
    notes += [
        f"† our own setting, as no paper gives one: {', '.join(names)} on {where}."
        for where, names in places.items()
    ]
    notes += dict.fromkeys(
        f"{MARK} {text}: {line.method.label} on {models[block.section.subject][0]}, "
        f"{block.section.dataset}, {stream_name(block.section.stream)}."
        for block, line in lines
        for text in line.remarks
    )
    return notes + _refusals(lines)


def _refusals(lines: Sequence[tuple[PaperBlock, PaperLine]]) -> list[str]:
    """What a table cannot show because of the data: a line for every reason and dataset."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for _, line in lines:
        for figure in line.figures:
            for cell in (cell for place in figure.places for cell in place.cells):
                if cell.status == "skipped" and cell.reason:
                    place = (cell.reason, cell.dataset)
                    places.setdefault(place, {})[line.name] = None
    return [
        f"{ABSENT} {', '.join(methods)} on {dataset}: {reason}."
        for (reason, dataset), methods in places.items()
    ]
