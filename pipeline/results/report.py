"""One HTML file per grid: opens offline, needs no other file, says where its figures come from."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from markupsafe import Markup

from pipeline.results import figures
from pipeline.results.answers_html import answers_html
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellRecord, prompt_of, remark_in
from pipeline.results.model_names import model_name, row_titles
from pipeline.results.pages import render_page
from pipeline.results.protocol_captions import (
    SCORE_DEFINITIONS,
    definition,
    shown_protocol,
    sorted_protocols,
)
from pipeline.results.query import Connection, connect, runs
from pipeline.results.rendering import format_value, render_table
from pipeline.results.report_queries import questions
from pipeline.results.tables import Column, build_table, editor_label, stream_label
from pipeline.storage.object_store import Storage
from rledit.errors import UserError

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Subject = tuple[str, str, str | None]  # scale, model, dataset; None: all its datasets


class ReportError(UserError, ValueError):
    """A report that cannot be written, with what there is instead."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a grid found on one model and dataset: a sentence and a ranking."""

    text: str
    ranking: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """The figures of one model on one dataset."""

    title: str
    pictures: tuple[figures.Picture, ...]


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
) -> tuple[str, list[Section]]:
    """The report of a grid as HTML text, and the sections in it."""
    lake = lake if isinstance(lake, Lake) else Lake(lake)
    records = lake.shown()
    if not any(record.address.grid == grid for record in records):
        raise ReportError(_no_grid(lake, grid, {record.address.grid for record in records}))
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
        summaries=summaries(rows, preferred),
        counts=dict(sorted(Counter(record.status for record in records).items())),
        header=header(records, protocols),
        published=None if published is None else Markup(published),
        table=Markup(render_table(build_table(rows), "html", long=True)),
        protocols=[(name, definition(name)) for name in protocols],
        scores=SCORE_DEFINITIONS.values(),
        sections=sections,
        answers=answers_html(connection, grid),
        provenance=provenance(records),
        settings=_settings(records),
        failures=[r for r in records if not r.done],
        remarks=[
            (r, text) for r in records if r.done and (text := remark_in(r.values["resolved"]))
        ],
        questions=questions(grid, rows, preferred),
        stream=stream_label,
        editor=editor_label,
    )
    return text, sections


def _write_figures(sections: Sequence[Section], storage: Storage) -> None:
    for section in sections:
        for picture in section.pictures:
            name = re.sub(r"[^a-z0-9]+", "-", f"{section.title} {picture.title}".lower()).strip("-")
            storage.write_bytes(f"{name}.svg", picture.svg)


def _no_grid(lake: Lake, grid: str, known: Iterable[str]) -> str:
    near = get_close_matches(grid, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    there = ", ".join(sorted(known)) or "none"
    return f"no cells of grid {grid!r} in {lake.storage}.{hint} Grids there: {there}"


def summaries(rows: Sequence[Row], preferred: Mapping[str, str]) -> list[Summary]:
    """Per model and dataset: the methods by efficacy after the longest stream, every one named.

    Args:
        rows: final rows of `runs`.
        preferred: dataset → protocol to rank by, where there are scores by it.
    """
    found = []
    names = row_titles(rows)
    for subject in _subjects(rows):
        here = _of_subject(rows, subject)
        model, dataset = names[subject[:2]][0], subject[2]
        done = [row for row in here if row["status"] == "done"]
        if not done:
            found.append(Summary(text=f"{dataset} on {model}: no cell finished.", ranking=()))
            continue
        stream = figures.longest_stream(figures.framed(done))
        protocol = shown_protocol(done, preferred) or ""
        table = build_table(here, protocols=[protocol])
        panel = table.panels[0]
        eff, spe = (Column(stream=stream, metric=m) for m in ("efficacy", "specificity"))
        scored = [line for line in table.lines if panel.value(line, eff).mean is not None]
        scored.sort(key=lambda line: -(panel.value(line, eff).mean or 0.0))
        ranking = tuple(
            f"{line.label} {format_value(panel.value(line, eff), eff, table.n_seeds)}"
            f" / {format_value(panel.value(line, spe), spe, table.n_seeds)}"
            for line in scored
        )
        text = (
            f"{dataset} on {model} after {stream[0] * stream[1]} edits ({stream_label(stream)}): "
            f"efficacy / specificity by {protocol}, highest efficacy first"
        )
        found.append(Summary(text=text, ranking=ranking))
    return found


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
) -> list[Section]:
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
        pictures = tuple(picture for draw in registry.values() for picture in draw(figure_data))
        if pictures:
            name, _ = names[scale, model]
            title = f"{dataset or 'all datasets'} on {name} ({_named(shown)})"
            sections.append(Section(title=title, pictures=pictures))
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


def header(records: Sequence[CellRecord], protocols: Sequence[str]) -> list[tuple[str, str]]:
    """What a number must not be read without: protocol, scale, code and data."""
    metadata = dict(provenance(records))
    # Here the name is enough; which weights it stands for is said at the end of the report.
    models = {model_name(record.address.model, record.address.scale) for record in records}
    metadata["model"] = ", ".join(sorted(models))
    names = ("prompts", "scale", "model", "data", "streams", "seeds", "code version")
    found = [("protocol", ", ".join(protocols))] if protocols else []
    return found + [(name, _short_hashes(metadata[name])) for name in names if name in metadata]


def _short_hashes(text: str) -> str:
    """Twelve digits tell two files apart; the whole hash stands at the end of the report."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", text)


def provenance(records: Sequence[CellRecord]) -> list[tuple[str, str]]:
    """What was run, as (name, distinct values)."""

    def distinct(values: Iterable[Any]) -> str:
        return ", ".join(sorted({str(value) for value in values if value not in (None, "")}))

    done = [record for record in records if record.done]
    values = [record.values for record in done]
    moments = [v[name] for v in values for name in ("started_at", "finished_at") if v[name]]
    seconds = sum(
        v[name] or 0 for v in values for name in ("train_seconds", "edit_seconds", "score_seconds")
    )
    streams = {(r.address.n_batches, r.address.batch_size) for r in records}
    metadata = [
        ("code version", distinct(v["code_version"] for v in values)),
        ("data", distinct(f"{r.address.dataset} {r.values['data_hash']}" for r in done)),
        ("model", distinct(f"{r.address.model} {r.values['model_hash'] or ''}" for r in done)),
        ("prompts", distinct(prompt_of(r.values["identity"]) for r in records)),
        ("scale", distinct(r.address.scale for r in records)),
        ("streams", ", ".join(stream_label(s) for s in sorted(streams))),
        ("seeds", ", ".join(map(str, sorted({r.address.seed for r in records})))),
        ("threads × ranks", distinct(f"{v['threads']}×{v['ranks']}" for v in values)),
        ("contradicting edits", distinct(v["n_contradicting"] for v in values)),
        ("peak memory (GB)", f"{max(_known(values, 'peak_memory_gb'), default=0):.2f}"),
        ("training + editing + scoring", f"{seconds:.0f} s over {len(done)} cells"),
        ("versions", distinct(_pairs(v["versions"]) for v in values)),
    ]
    if moments:
        metadata.append(
            ("run (UTC)", f"{min(moments):%Y-%m-%d %H:%M} to {max(moments):%Y-%m-%d %H:%M}")
        )
    return [(name, value) for name, value in metadata if value]


def _known(values: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [v[name] for v in values if v[name] is not None]


def _pairs(versions: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in sorted(versions.items()))


def _settings(records: Sequence[CellRecord]) -> list[tuple[str, str, str]]:
    """(editor, cell, resolved settings as JSON) of one cell per editor, on its longest stream."""
    chosen: dict[tuple[str, ...], CellRecord] = {}
    for record in sorted(records, key=_size, reverse=True):
        a = record.address
        chosen.setdefault((editor_label(a.editor, a.variant), a.model, a.dataset), record)
    return [
        (
            f"{editor} on {model}, {dataset}",
            record.address.cell_key,
            json.dumps(record.values["resolved"], indent=1, sort_keys=True, ensure_ascii=False),
        )
        for (editor, model, dataset), record in sorted(chosen.items())
    ]


def _size(record: CellRecord) -> tuple[int, int]:
    return (record.address.n_batches * record.address.batch_size, -record.address.seed)
