"""One HTML file per grid: opens offline, needs no other file, says where its figures come from."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.results import figures
from pipeline.results.lake import Lake
from pipeline.results.protocols import SCORE_DEFINITIONS, definition, sorted_protocols
from pipeline.results.query import Connection, connect, query, quoted, runs
from pipeline.results.records import CellRecord
from pipeline.results.rendering import format_value, render_table
from pipeline.results.tables import (
    Column,
    Stream,
    build_table,
    editor_label,
    stream_label,
)
from pipeline.storage import Storage

logger = logging.getLogger(__name__)

_AGE_BINS = 10  # a stream of 400 batches is still a readable line
_CURVES = {"shift_norm": "‖ΔW‖ of the batch", "realised_cosine": "realised cosine"}

Row = Mapping[str, Any]


class ReportError(ValueError):
    """A report that cannot be written, with what there is instead."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with what it shows."""

    title: str
    text: str
    svg: bytes

    @property
    def uri(self) -> str:
        """The picture as a data URI, which needs no other file."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What a grid found on one model and dataset: a sentence and a ranking."""

    text: str
    ranking: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """The figures of one model on one dataset."""

    title: str
    pictures: tuple[Picture, ...]


def write_report(
    lake: str | Lake, grid: str, out: str | os.PathLike[str], *, title: str | None = None
) -> str:
    """Writes the report of a grid and returns where it is.

    Args:
        out: path or URI of the HTML file.

    Raises:
        ReportError: the grid has no cells in this lake; the message names those that have.
    """
    folder, _, name = os.fspath(out).rpartition("/")
    if not name:
        raise ReportError(f"{os.fspath(out)!r} is a folder: name the HTML file to write")
    page = render_report(lake, grid, title=title)
    storage = Storage(folder or ("/" if os.fspath(out).startswith("/") else "."))
    storage.write_bytes(name, page.encode())
    logger.info("report of %s: %s/%s", grid, storage, name)
    return os.fspath(out)


def render_report(lake: str | Lake, grid: str, *, title: str | None = None) -> str:
    """The report of a grid as HTML text."""
    lake = lake if isinstance(lake, Lake) else Lake(lake)
    records = lake.manifest()
    if not any(record.address.grid == grid for record in records):
        raise ReportError(_no_grid(lake, grid, {record.address.grid for record in records}))
    records = [record for record in records if record.address.grid == grid]
    connection = connect(lake, records)
    rows = runs(connection, grid)
    protocols = sorted_protocols(row["protocol"] for row in rows if row["protocol"] is not None)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.results"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        title=title or f"Lifelong model editing: {grid}",
        grid=grid,
        lake=str(lake.storage),
        headlines=headlines(rows),
        counts=_counts(records),
        table=Markup(render_table(build_table(rows), "html", bold_best=True)),
        protocols=[(name, definition(name)) for name in protocols],
        scores=SCORE_DEFINITIONS.values(),
        sections=_sections(connection, rows, protocols),
        provenance=provenance(records),
        settings=_settings(records),
        failures=[r for r in records if not r.done],
        stream=stream_label,
        editor=editor_label,
    )


def write_figures(lake: str | Lake, grid: str, folder: str | os.PathLike[str]) -> list[str]:
    """Writes the report's figures as SVG files, for papers and slides; returns their names."""
    lake = lake if isinstance(lake, Lake) else Lake(lake)
    records = lake.manifest(grid)
    connection = connect(lake, records)
    rows = runs(connection, grid)
    protocols = sorted_protocols(row["protocol"] for row in rows if row["protocol"] is not None)
    storage = Storage(os.fspath(folder))
    names = []
    for section in _sections(connection, rows, protocols):
        for picture in section.pictures:
            name = re.sub(r"[^a-z0-9]+", "-", f"{section.title} {picture.title}".lower()).strip("-")
            storage.write_bytes(f"{name}.svg", picture.svg)
            names.append(f"{name}.svg")
    return names


def _no_grid(lake: Lake, grid: str, known: Iterable[str]) -> str:
    near = get_close_matches(grid, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    there = ", ".join(sorted(known)) or "none"
    return f"no cells of grid {grid!r} in {lake.storage}.{hint} Grids there: {there}"


def headlines(rows: Sequence[Row]) -> list[Headline]:
    """Per model and dataset: the methods by efficacy after the longest stream, every one named."""
    found = []
    for scale, model, dataset in _subjects(rows):
        here = _of_subject(rows, (scale, model, dataset))
        done = [row for row in here if row["status"] == "done"]
        if not done:
            found.append(Headline(text=f"{dataset} on {model}: no cell finished.", ranking=()))
            continue
        stream = figures.streams_of(done)[-1]
        protocol = sorted_protocols(row["protocol"] for row in done)[0]
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
        found.append(Headline(text=text, ranking=ranking))
    return found


def _of_subject(rows: Sequence[Row], subject: tuple[str, str, str]) -> list[Row]:
    return [row for row in rows if (row["scale"], row["model"], row["dataset"]) == subject]


def _subjects(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    return sorted({(row["scale"], row["model"], row["dataset"]) for row in rows})


def _counts(records: Sequence[CellRecord]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        counts[record.status] = counts.get(record.status, 0) + 1
    return dict(sorted(counts.items()))


def _sections(
    connection: Connection, rows: Sequence[Row], protocols: Sequence[str]
) -> list[Section]:
    look = figures.looks(rows)
    sections = []
    for scale, model, dataset in _subjects([row for row in rows if row["status"] == "done"]):
        protocol = protocols[0]
        here = [
            row for row in _of_subject(rows, (scale, model, dataset)) if row["protocol"] == protocol
        ]
        if not here:
            continue
        subject = (
            f"scale = {quoted(scale)} AND model = {quoted(model)} AND dataset = {quoted(dataset)}"
        )
        pictures = [*_score_pictures(here, look, protocol)]
        pictures += _retention_pictures(connection, subject, protocol, look)
        pictures += _curve_pictures(connection, subject, look)
        sections.append(
            Section(title=f"{dataset} on {model} ({protocol})", pictures=tuple(pictures))
        )
    return sections


def _score_pictures(rows: Sequence[Row], look: figures.Look, protocol: str) -> list[Picture]:
    longest = figures.streams_of(rows)[-1]
    costs = [row for row in rows if (row["n_batches"], row["batch_size"]) == longest]
    return [
        Picture(
            title="Scores at the end of the stream",
            text=f"Efficacy, generalization and specificity by {protocol}; mean over seeds, bars "
            "of one standard deviation.",
            svg=figures.score_bars(rows, look),
        ),
        Picture(
            title="What an edit costs the rest of the model",
            text="Efficacy against specificity; up and to the right is better.",
            svg=figures.frontier(rows, look),
        ),
        Picture(
            title=f"Cost, {stream_label(longest)}",
            text="Time per edit, and apart from it the training that comes before the first edit.",
            svg=figures.cost_bars(costs, look),
        ),
    ]


def _retention_pictures(
    connection: Connection, subject: str, protocol: str, look: figures.Look
) -> list[Picture]:
    # Age counts the edits applied after the scored edit's own batch. An edit that a later one
    # rewrites is not expected to hold.
    width = f"(batch_size * CAST(ceil(n_batches / {_AGE_BINS}) AS INTEGER))"
    rows = query(
        f"""
        SELECT editor, variant, n_batches, batch_size, checkpoint,
               {width} * (greatest(0, checkpoint - (batch_index + 1) * batch_size) // {width})
                   AS age,
               avg(efficacy) AS score
        FROM edits
        WHERE {subject} AND protocol = {quoted(protocol)} AND NOT superseded
              AND efficacy IS NOT NULL
        GROUP BY ALL ORDER BY ALL""",
        connection,
    ).dicts()
    if not rows:
        return []
    last: dict[Stream, int] = {}
    for row in rows:
        stream = (row["n_batches"], row["batch_size"])
        last[stream] = max(last.get(stream, 0), row["checkpoint"])
    at_end = [r for r in rows if r["checkpoint"] == last[r["n_batches"], r["batch_size"]]]
    longest = max(last, key=lambda s: (s[0] * s[1], s))
    pictures = [
        Picture(
            title="Retention by age",
            text="Efficacy of the edits by how many edits came after them, at the end of the "
            "stream. A line that falls to the right forgets.",
            svg=figures.retention(at_end, look),
        )
    ]
    mapped = [row for row in rows if (row["n_batches"], row["batch_size"]) == longest]
    if len({row["checkpoint"] for row in mapped}) > 1:
        pictures.append(
            Picture(
                title=f"Retention along the stream, {stream_label(longest)}",
                text="Efficacy by stream position (across) and edit age (up); grey: no such age.",
                svg=figures.retention_map(mapped, look),
            )
        )
    return pictures


def _curve_pictures(connection: Connection, subject: str, look: figures.Look) -> list[Picture]:
    pictures = []
    for metric, label in _CURVES.items():
        rows = query(
            f"""SELECT editor, variant, n_batches, batch_size, step, metric, avg(value) AS value
            FROM curves WHERE {subject} AND metric = {quoted(metric)} AND isfinite(value)
            GROUP BY ALL ORDER BY ALL""",
            connection,
        ).dicts()
        if rows:
            pictures.append(
                Picture(
                    title=f"Along the stream: {label}",
                    text="Per batch of edits, mean over seeds.",
                    svg=figures.curves(rows, look, metric, label),
                )
            )
    return pictures


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
    facts = [
        ("code version", distinct(v["code_version"] for v in values)),
        ("data", distinct(f"{r.address.dataset} {r.values['data_hash']}" for r in done)),
        ("model", distinct(f"{r.address.model} {r.values['model_hash'] or ''}" for r in done)),
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
        facts.append(
            ("run (UTC)", f"{min(moments):%Y-%m-%d %H:%M} to {max(moments):%Y-%m-%d %H:%M}")
        )
    return [(name, value) for name, value in facts if value]


def _known(values: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [v[name] for v in values if v[name] is not None]


def _pairs(versions: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in sorted(versions.items()))


def _settings(records: Sequence[CellRecord]) -> list[tuple[str, str, str]]:
    """(editor, cell, resolved settings as JSON) of one cell per editor, on its longest stream."""
    chosen: dict[tuple[str, ...], CellRecord] = {}
    for record in records:
        a = record.address
        place = (editor_label(a.editor, a.variant), a.model, a.dataset)
        best = chosen.get(place)
        size = (a.n_batches * a.batch_size, -a.seed)
        if best is None or size > (best.address.n_batches * best.address.batch_size,
                                   -best.address.seed):  # fmt: skip
            chosen[place] = record
    return [
        (
            f"{place[0]} on {place[1]}, {place[2]}",
            record.address.cell_key,
            json.dumps(record.values["resolved"], indent=1, sort_keys=True, ensure_ascii=False),
        )
        for place, record in sorted(chosen.items())
    ]
