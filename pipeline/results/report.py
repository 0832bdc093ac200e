"""One HTML file per grid: opens offline, needs no other file, says where its figures come from."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from markupsafe import Markup

from pipeline.results import figures
from pipeline.results.answers_html import answers_html
from pipeline.results.figures.findings import listed
from pipeline.results.figures.inline import Pieces, pieces
from pipeline.results.figures.style import DARK
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import remark_in
from pipeline.results.model_names import row_titles
from pipeline.results.pages import render_page
from pipeline.results.protocol_captions import (
    SCORE_DEFINITIONS,
    definition,
    shown_protocol,
    sorted_protocols,
)
from pipeline.results.query import Connection, connect, runs
from pipeline.results.ranking import competing
from pipeline.results.rendering import render_table
from pipeline.results.report_facts import asked, header, provenance, settings_of
from pipeline.results.report_queries import questions
from pipeline.results.tables import (
    MEAN,
    MEAN_OF,
    UNEDITED,
    Column,
    Stream,
    Table,
    build_table,
    editor_label,
    stream_label,
)
from pipeline.storage.object_store import Storage
from rledit.errors import UserError

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
ALONG = "along"
_LONGEST_NAME = 150  # of a figure's file; file systems stop at 255 bytes
Subject = tuple[str, str, str | None]  # scale, model, dataset; None: all its datasets


class ReportError(UserError, ValueError):
    """A report that cannot be written, with what there is instead."""


@dataclass(frozen=True, kw_only=True)
class FigureSection:
    """The figures of one model on one dataset, by where the page shows them."""

    title: str
    pictures: Mapping[str, Sequence[figures.Picture]]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A figure as the page shows it."""

    title: str
    text: str
    pieces: Pieces


def write_report(
    lake: str | Lake,
    grid: str,
    out: str | os.PathLike[str],
    *,
    published: str | None = None,
    protocols: Mapping[str, str] | None = None,
    figures_folder: str | os.PathLike[str] | None = None,
) -> str:
    """Writes the report of a grid and returns where it is.

    Args:
        out: path or URI of the HTML file.
        published: the grid's table beside published figures, as an HTML fragment, where it has one.
        protocols: the protocol of each dataset that rankings and figures show; where there is none,
            or no score by it: the first of those that there are.
        figures_folder: where the figures go as SVG files too, for papers and slides.

    Raises:
        ReportError: the grid has no cells in this lake; the message names those that have.
    """
    folder, _, name = os.fspath(out).rpartition("/")
    if not name:
        raise ReportError(f"{os.fspath(out)!r} is a folder: name the HTML file to write")
    page, sections = _page(lake, grid, published, protocols or {})
    storage = Storage(folder or ("/" if os.fspath(out).startswith("/") else "."))
    storage.write_bytes(name, page.encode())
    if figures_folder is not None:
        _write_figures(sections, Storage(os.fspath(figures_folder)))
    logger.info("report of %s: %s/%s", grid, storage, name)
    return os.fspath(out)


def _page(
    lake: str | Lake, grid: str, published: str | None, preferred: Mapping[str, str]
) -> tuple[str, list[FigureSection]]:
    """The report of a grid as HTML text, and the sections in it."""
    lake = lake if isinstance(lake, Lake) else Lake(lake)
    records = lake.shown()
    if not any(record.address.grid == grid for record in records):
        raise ReportError(no_grid(lake, grid, {record.address.grid for record in records}))
    records = [record for record in records if record.address.grid == grid]
    connection = connect(lake, records)
    rows = runs(connection, grid)
    protocols = sorted_protocols(row["protocol"] for row in rows if row["protocol"] is not None)
    sections = _sections(connection, grid, rows, preferred)
    text = render_page(
        "pipeline.results",
        "report",
        "html",
        title=f"Lifelong model editing: {grid}",
        grid=grid,
        lake=str(lake.storage),
        question=asked(records, protocols),
        colours=DARK.items(),
        findings=summaries(rows, preferred),
        counts=dict(sorted(Counter(record.status for record in records).items())),
        header=header(records, protocols),
        published=None if published is None else Markup(published),
        tables=[Markup(text) for text in _short_tables(rows, preferred)] if not published else [],
        long=Markup(render_table(build_table(rows), "html", long=True)),
        protocols=[(name, definition(name)) for name in protocols],
        scores=SCORE_DEFINITIONS.values(),
        outcome=_placed(sections, figures.OUTCOME),
        cost=_placed(sections, figures.COST),
        along=_placed(sections, ALONG),
        answers=answers_html(connection, grid),
        provenance=provenance(records),
        settings=settings_of(records),
        failures=[r for r in records if not r.done],
        remarks=[
            (r, text) for r in records if r.done and (text := remark_in(r.values["resolved"]))
        ],
        questions=questions(grid, rows, preferred),
        stream=stream_label,
        editor=editor_label,
    )
    return text, sections


def _short_tables(rows: Sequence[Row], preferred: Mapping[str, str]) -> Iterator[str]:
    """Eff, Gen, Spe and their mean, every dataset by the protocol of its figures."""
    shown = _shown_protocols(rows, preferred)
    for protocol in dict.fromkeys(shown.values()):
        own = [row for row in rows if shown.get(row["dataset"]) == protocol]
        yield render_table(build_table(own, protocols=[protocol]), "html")
    if not shown:
        yield render_table(build_table(rows), "html")


def _placed(sections: Sequence[FigureSection], place: str) -> list[tuple[str, list[Shown]]]:
    """The title of every section with figures at a place, and these as the page shows them."""
    found = []
    for i, section in enumerate(sections):
        pictures = section.pictures.get(place, ())
        if pictures:
            shown = [_shown(p, f"{place[0]}{i}-{j}-") for j, p in enumerate(pictures)]
            found.append((section.title, shown))
    return found


def _shown(picture: figures.Picture, prefix: str) -> Shown:
    found = pieces(picture.svg, prefix) if picture.svg else Pieces(keys=(), panels=())
    text = picture.text.replace(" %", "\N{NO-BREAK SPACE}%")
    return Shown(title=picture.title, text=text, pieces=found)


def _write_figures(sections: Sequence[FigureSection], storage: Storage) -> None:
    drawn = [
        (f"{section.title} {picture.title}", picture.svg)
        for section in sections
        for found in section.pictures.values()
        for picture in found
        if picture.svg
    ]
    names = _file_names([title for title, _ in drawn])
    for title, svg in drawn:
        storage.write_bytes(f"{names[title]}.svg", svg)


def _file_names(titles: Iterable[str]) -> dict[str, str]:
    """A name of letters, digits and dashes for every title.

    One that is too long, or that other titles have as well, ends in a hash of the title.
    """
    names = {title: re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles}
    counts = Counter(names.values())
    return {
        title: name
        if counts[name] == 1 and len(name) <= _LONGEST_NAME
        else f"{name[:_LONGEST_NAME]}-{hashlib.sha256(title.encode()).hexdigest()[:8]}"
        for title, name in names.items()
    }


def no_grid(lake: Lake, grid: str, known: Iterable[str]) -> str:
    """A grid is not in a lake; which ones are, and which is meant perhaps."""
    near = get_close_matches(grid, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    there = ", ".join(sorted(known)) or "none"
    return f"no cells of grid {grid!r} in {lake.storage}.{hint} Grids there: {there}"


def summaries(rows: Sequence[Row], preferred: Mapping[str, str]) -> list[str]:
    """Per model and dataset a sentence: who has the best mean, who the most efficacy.

    Args:
        rows: final rows of `runs`.
        preferred: dataset → protocol to judge by, where there are scores by it.
    """
    found = []
    names = row_titles(rows)
    for subject in _subjects(rows):
        here = _of_subject(rows, subject)
        where = f"{subject[2]} on {names[subject[:2]][0]}"
        done = [row for row in here if row["status"] == "done"]
        if not done:
            found.append(f"{where}: no cell finished.")
            continue
        stream = figures.longest_stream(figures.framed(done))
        protocol = shown_protocol(done, preferred) or ""
        table = build_table(here, protocols=[protocol])
        said = _best(table, stream)
        edits = f"{stream[0] * stream[1]} edits ({stream_label(stream)})"
        found.append(f"{where} after {edits}, by {protocol}: {said}")
    return found


def _best(table: Table, stream: Stream) -> str:
    """The best and second method by the mean of Eff, Gen and Spe, and the best efficacy.

    Those rank that the table ranks: of equal seeds, data and settings, and without a remark.
    """
    panel = table.panels[0]
    scores = (*MEAN_OF, MEAN)
    columns = {metric: Column(stream=stream, metric=metric) for metric in scores}

    def of(metric: str) -> dict[str, float]:
        values = {line: panel.value(line, columns[metric]).mean for line in table.lines}
        return {line.label: value for line, value in values.items() if value is not None}

    def ranked(metric: str) -> dict[str, float]:
        values = {line: panel.value(line, columns[metric]) for line in table.lines}
        there = [line for line, value in values.items() if value.mean is not None]
        own = competing([line.basis(values[line]) for line in there])
        return {there[i].label: of(metric)[there[i].label] for i in own}

    means, efficacy = ranked(MEAN), ranked("efficacy")
    scored = of(MEAN)
    bare = scored.pop(editor_label(UNEDITED), None)
    if not means and (scored or bare is None):
        return _most(efficacy, "efficacy") + "."
    ranking = sorted(means, key=lambda name: -means[name])
    if not ranking:
        return f"the unedited model alone, mean {bare:.1f}."
    first = ranking[0]
    parts = " / ".join(f"{of(metric)[first]:.1f}" for metric in MEAN_OF)
    said = f"{first} has the best mean, {means[first]:.1f} (Eff / Gen / Spe {parts})"
    if len(ranking) > 1:
        lead = means[first] - means[ranking[1]]
        said += f", {lead:.1f} points above {ranking[1]}" if round(lead, 1) else (
            f", level with {ranking[1]}")  # fmt: skip
    leader = max(efficacy, key=lambda name: efficacy[name])
    said += "; " + (_most(efficacy, "efficacy") if leader != first else "and the most efficacy")
    said += f". The unedited model's mean is {bare:.1f}." if bare is not None else "."
    if others := [name for name in scored if name not in means]:
        said += f" Not ranked, for other seeds, data or settings, or a remark: {listed(others)}."
    return said


def _most(values: Mapping[str, float], what: str) -> str:
    name = max(values, key=lambda key: values[key]) if values else None
    return (
        "no method is ranked" if name is None else f"{name} has the most {what}, {values[name]:.1f}"
    )


def _subjects(rows: Sequence[Row]) -> list[Subject]:
    return [*sorted({(row["scale"], row["model"], row["dataset"]) for row in rows})]


def _of_subject(rows: Sequence[Row], subject: Subject) -> list[Row]:
    """The rows of a model on a dataset, or on all its datasets."""
    scale, model, dataset = subject
    return [
        row for row in rows
        if (row["scale"], row["model"]) == (scale, model) and dataset in (None, row["dataset"])
    ]  # fmt: skip


def _sections(
    connection: Connection, grid: str, rows: Sequence[Row], preferred: Mapping[str, str]
) -> list[FigureSection]:
    """Every model on every dataset, and the overview of a model where it has several.

    Each section has what its registry draws, every dataset under the protocol of its table.
    """
    style = figures.styles(figures.framed(rows))
    names = row_titles(rows)
    subjects = _subjects([row for row in rows if row["status"] == "done"])
    models = sorted({(row["scale"], row["model"]) for row in rows})
    overviews: list[Subject] = [(scale, model, None) for scale, model in models]
    sections = []
    for subject in (*subjects, *overviews):
        scale, model, dataset = subject
        here = _of_subject(rows, subject)
        shown = _shown_protocols(here, preferred)
        if not shown:
            continue
        figure_data = figures.FigureData(
            connection=connection,
            grid=grid,
            scale=scale,
            model=model,
            dataset=dataset,
            protocol=_named(shown),
            rows=figures.framed([r for r in here if r["protocol"] == shown.get(r["dataset"], "")]),
            style=style,
        )
        registry = figures.OVERVIEWS if dataset is None else figures.FIGURES
        pictures: dict[str, list[figures.Picture]] = {}
        for name, draw in registry.items():
            pictures.setdefault(figures.PLACES.get(name, ALONG), []).extend(draw(figure_data))
        if any(pictures.values()):
            called, _ = names[scale, model]
            title = f"{dataset or 'all datasets'} on {called} ({_named(shown)})"
            sections.append(FigureSection(title=title, pictures=pictures))
    return sections


def _shown_protocols(rows: Sequence[Row], preferred: Mapping[str, str]) -> dict[str, str]:
    """The protocol that each dataset's figures show, of those that were scored."""
    found = {
        name: shown_protocol([row for row in rows if row["dataset"] == name], preferred)
        for name in sorted({row["dataset"] for row in rows})
    }
    return {name: protocol for name, protocol in found.items() if protocol is not None}


def _named(shown: Mapping[str, str]) -> str:
    """The protocol of all datasets, or each one's."""
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return ", ".join(f"{protocol} on {dataset}" for dataset, protocol in shown.items())
