"""Result tables from rows of `runs`, wherever the rows come from.

One panel per protocol, one line per method, model and dataset, one group of columns per stream n×m
(n batches of m edits). Several seeds show as mean ± sample standard deviation. A cell that failed
shows its status, one that never ran shows a dash; nothing is filled in.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.results.judge.notes import judge_notes
from pipeline.results.lake.key_versions import changed_fields
from pipeline.results.lake.records import BARE, SCORES
from pipeline.results.model_names import row_titles
from pipeline.results.protocol_captions import SCORE_DEFINITIONS, sorted_protocols
from pipeline.results.sheets import ABSENT, MARK, TableError
from pipeline.results.stream_notes import orders, parts, samples

Row = Mapping[str, Any]
Stream = tuple[int, int]  # (batches, edits per batch)

UNEDITED = "none"
# The order of methods wherever they stand below each other, that of `rledit.editors.EDITORS` (which
# takes seconds to import): the references first, then training-free ones, then those that train.
EDITOR_ORDER = (
    UNEDITED, "untrained", "ultraedit", "stableedit", "ft", "ft_l", "ft_m", "locft", "crispedit",
    "rome", "memit", "prune", "rect", "alphaedit", "nas", "encore", "lyaplock", "betaedit",
    "deltaedit", "grace", "wise", "memoir", "mend", "malmen", "mend_star", "malmen_star",
    "mend_rledit", "malmen_rledit", "dafnet", "instructedit", "hiedit", "rledit",
)  # fmt: skip

MEAN = "mean"  # of these three, as in the literature's tables
MEAN_OF = ("efficacy", "generalization", "specificity")
COSTS = {"edit_ms": "ms/edit", "train_seconds": "train s"}
_LABELS = {name: short for name, (short, _) in SCORE_DEFINITIONS.items()} | {MEAN: "Mean"} | COSTS
ADDRESS_FIELDS = ("scale", "model", "dataset")
PROMPT = "prompt"  # an address field where a prompt is not bare
_SEED = (*ADDRESS_FIELDS, PROMPT, "editor", "variant", "n_batches", "batch_size", "seed")


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """A figure that was measured with several seeds.

    Attributes:
        values: One per seed, in order of seed; empty if nothing was measured.
    """

    values: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over seeds, None without any."""
        return math.fsum(self.values) / len(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds, None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Value(OverSeeds):
    """One figure of a table.

    Attributes:
        status: of cells that have no result: "failed", "skipped", …; "" if there is none.
        n_missing: how many seeds have that status.
        remark: what must be said of the cells, e.g. that their edits had no effect.
        basis: what it was measured on: seeds, data and size of the sample. Figures of another
            basis are not ranked against each other. None: seeds were run with different settings,
            so that it is not ranked at all.
    """

    status: str = ""
    n_missing: int = 0
    remark: str = ""
    basis: tuple[tuple[Any, ...], ...] | None = ()


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: a score under the panel's protocol, or a cost, on one stream."""

    stream: Stream
    metric: str

    @property
    def label(self) -> str:
        """What the header says, without the stream."""
        return _LABELS[self.metric]


@dataclass(frozen=True, kw_only=True)
class TableLine:
    """One method on one model and dataset, asked in one way."""

    scale: str
    model: str
    dataset: str
    prompt: str
    editor: str
    variant: str

    @property
    def label(self) -> str:
        """The method's name as tables print it."""
        return editor_label(self.editor, self.variant)

    def basis(self, value: Value) -> tuple[tuple[Any, ...], ...] | None:
        """What one of its figures competes with others by; None where it does not compete."""
        return None if self.editor == UNEDITED or value.remark else value.basis


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All methods under one protocol."""

    protocol: str
    columns: tuple[Column, ...]
    values: Mapping[tuple[TableLine, Column], Value]

    def value(self, line: TableLine, column: Column) -> Value:
        """The figure at a place; an empty one if no cell ran there."""
        return self.values.get((line, column), Value())


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table before it is rendered.

    Attributes:
        n_seeds: how many seeds the grid has; figures of fewer say so.
        shared: address fields that are the same in every line, for the caption.
        models: name and title of each model, by scale and name in the grid.
        notes: what a reader must know to trust the figures.
    """

    title: str
    grid: str
    n_seeds: int
    lines: tuple[TableLine, ...]
    panels: tuple[Panel, ...]
    shared: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def editor_label(editor: str, variant: str = "") -> str:
    """How a method is called in tables and figures."""
    name = "unedited" if editor == UNEDITED else editor
    return f"{name} ({variant})" if variant else name


def stream_label(stream: Stream) -> str:
    """`n×m`: n batches of m edits."""
    return f"{stream[0]}×{stream[1]}"


def build_table(
    rows: Iterable[Row], *, title: str = "", protocols: Sequence[str] | None = None
) -> Table:
    """Makes a table from rows of `runs` (rows that are not final are left out).

    Args:
        protocols: which, and in which order; default all.

    Raises:
        TableError: there is no row, an unknown protocol was asked for, or two cells claim the
            same place.
    """
    kept = [row for row in rows if row["final"] or row["protocol"] is None]
    if not kept:
        raise TableError("there are no results to show: run the grid first")
    _refuse_duplicates(kept)
    found = sorted_protocols(row["protocol"] for row in kept if row["protocol"] is not None)
    asked = list(found) if protocols is None else list(protocols)
    if unknown := [name for name in asked if name not in found]:
        raise TableError(f"no results under protocol {unknown[0]!r}; there are: {', '.join(found)}")
    if not asked:
        asked = [""]  # nothing but failures: one panel that says so
    lines = sorted({_line(row) for row in kept}, key=_line_order)
    streams = sorted({_stream(row) for row in kept}, key=lambda s: (s[0] * s[1], s))
    columns = tuple(Column(stream=s, metric=m) for s in streams for m in (*SCORES, MEAN, *COSTS))
    fields = (*ADDRESS_FIELDS, *((PROMPT,) if any(line.prompt != BARE for line in lines) else ()))
    values = {name: sorted({getattr(line, name) for line in lines}) for name in fields}
    return Table(
        title=title,
        grid=", ".join(sorted({row["grid"] for row in kept})),
        n_seeds=len({row["seed"] for row in kept}),
        lines=tuple(lines),
        panels=tuple(_panel(protocol, kept, columns) for protocol in asked),
        shared={name: found[0] for name, found in values.items() if len(found) == 1},
        models=dict(sorted(row_titles(kept).items())),
        notes=tuple(_notes(kept)),
    )


def _line(row: Row) -> TableLine:
    return TableLine(**{name: row[name] for name in (*ADDRESS_FIELDS, PROMPT, "editor", "variant")})


def _stream(row: Row) -> Stream:
    return (row["n_batches"], row["batch_size"])


def _line_order(line: TableLine) -> tuple[Any, ...]:
    where = (line.scale, line.model, line.dataset, line.prompt)
    return (*where, *method_order(line.editor, line.variant))


def method_order(editor: str | None, variant: str = "") -> tuple[Any, ...]:
    """Sorts methods wherever they stand below each other: by `EDITOR_ORDER`, then by variant.

    Editors that are not in it come after them by name; numbers in variants count as numbers.
    """
    place = EDITOR_ORDER.index(editor) if editor in EDITOR_ORDER else len(EDITOR_ORDER)
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", variant)
    natural = tuple((0, float(p), "") if p[0].isdecimal() else (1, 0.0, p) for p in parts if p)
    return (editor is None, place, editor or "", natural)


def _refuse_duplicates(rows: Sequence[Row]) -> None:
    """Two cells at one place would be averaged as if they were seeds."""
    seen: dict[tuple[Any, ...], str] = {}
    for row in rows:
        place = tuple(row[name] for name in _SEED)
        if seen.setdefault(place, row["cell"]) != row["cell"]:
            named = ", ".join(f"{name}={row[name]}" for name in _SEED if row[name] != "")
            raise TableError(
                f"cells {seen[place]} and {row['cell']} are both {named}: they differ in settings "
                "the table does not show. Give one a variant name, or remove the outdated one"
            )


def _panel(protocol: str, rows: Sequence[Row], columns: Sequence[Column]) -> Panel:
    places: dict[tuple[TableLine, Stream], list[Row]] = {}
    for row in rows:
        if row["protocol"] in (protocol, None):
            places.setdefault((_line(row), _stream(row)), []).append(row)
    values = {
        (line, column): _value(column.metric, found)
        for (line, stream), found in places.items()
        for column in columns
        if column.stream == stream
    }
    return Panel(protocol=protocol, columns=tuple(columns), values=values)


def _value(metric: str, rows: Sequence[Row]) -> Value:
    """A figure from the rows of one place, one per seed."""
    rows = sorted(rows, key=lambda row: row["seed"])
    measured = [row for row in rows if row["status"] == "done"]
    missing = [row["status"] for row in rows if row["status"] != "done"]
    return Value(
        values=tuple(value for row in measured if (value := _figure(row, metric)) is not None),
        status="/".join(sorted(set(missing))),
        n_missing=len(missing),
        remark="" if metric in COSTS else _remark(measured),
        basis=None
        if any(row.get("settings") != measured[0].get("settings") for row in measured)
        else tuple(
            (row["seed"], row["data_hash"], row.get("scored_edits"), row.get("stream_order"))
            for row in measured
        ),
    )


def _figure(row: Row, metric: str) -> float | None:
    """A cell's score or cost; the mean of its scores where it has all three."""
    parts = [row[name] for name in (MEAN_OF if metric == MEAN else (metric,))]
    if any(part is None for part in parts):
        return None
    return math.fsum(parts) / len(parts)


def _remark(rows: Iterable[Row]) -> str:
    """The remarks on some cells, each once; rows of elsewhere may have none."""
    return "; ".join(dict.fromkeys(text for row in rows if (text := row.get("remark"))))


def _remarks(rows: Iterable[Row]) -> list[str]:
    """A note for every remark, with the lines it is on."""
    places: dict[str, dict[str, None]] = {}
    for row in rows:
        if text := row.get("remark"):
            where = f"{editor_label(row['editor'], row['variant'])} {stream_label(_stream(row))}"
            several = f"{where} on {row['model']}, {row['dataset']}"
            places.setdefault(text, {})[several] = None
    return [f"{MARK} {text}: {'; '.join(found)}." for text, found in sorted(places.items())]


def _mixtures(rows: Iterable[Row]) -> list[str]:
    """A note for every figure whose seeds were run with different settings, with what differs."""
    first: dict[tuple[TableLine, Stream], Row] = {}
    found: dict[str, dict[str, None]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["status"] == "done":
            line, stream = _line(row), _stream(row)
            before = first.setdefault((line, stream), row).get("settings") or {}
            where = f"{line.label} {stream_label(stream)} on {line.model}, {line.dataset}"
            for change in changed_fields(before, row.get("settings") or {}):
                found.setdefault(where, {})[f"{change} of seed {row['seed']}"] = None
    return [
        f"Seeds of different settings are averaged, and not ranked: {where} ({'; '.join(changes)})."
        for where, changes in found.items()
    ]


def _data_hashes(rows: Iterable[Row]) -> list[str]:
    """A note for every dataset whose cells were run on different data."""
    found: dict[str, set[str]] = {}
    for row in rows:
        if row["status"] == "done" and row["data_hash"]:
            found.setdefault(row["dataset"], set()).add(str(row["data_hash"]))
    return [
        f"Mixed data hashes of {dataset}: {', '.join(sorted(hashes))}."
        for dataset, hashes in sorted(found.items())
        if len(hashes) > 1
    ]


def _refusals(rows: Iterable[Row]) -> list[str]:
    """A note for every reason for which cells could not be run, with the methods and datasets."""
    places: dict[str, dict[str, dict[str, None]]] = {}
    for row in rows:
        if row["status"] == "skipped" and (why := row.get("reason")):
            methods = places.setdefault(why, {}).setdefault(row["dataset"], {})
            methods[editor_label(row["editor"], row["variant"])] = None
    return [
        f"{ABSENT} {', '.join(methods)} on {dataset}: {why}."
        for why, datasets in sorted(places.items())
        for dataset, methods in datasets.items()
    ]


def _notes(rows: Sequence[Row]) -> list[str]:
    """What the caption must say about seeds, failures and mixed provenance."""
    seeds = sorted({row["seed"] for row in rows})
    listed = ", ".join(map(str, seeds))
    notes = [
        f"Mean ± sample standard deviation over {len(seeds)} seeds ({listed}); "
        "n states the number where it is another."
        if len(seeds) > 1
        else f"One seed ({listed}): no spread is known."
    ]
    notes += samples(rows)
    notes += parts(rows)
    notes += orders(rows)
    notes += judge_notes(rows)
    notes += _remarks(rows)
    unfinished = {(row["cell"], row["status"]) for row in rows if row["status"] != "done"}
    missing = Counter(status for _, status in unfinished)
    notes += [f"{n} cell{'s' * (n > 1)} {status}." for status, n in sorted(missing.items())]
    notes += _refusals(rows)
    notes += dict.fromkeys(
        f"Not measured on {row['dataset']}: {what}, because {why}."
        for row in rows
        for what, why in (row.get("not_measured") or {}).items()
    )
    imported: dict[str, dict[str, None]] = {}
    for row in rows:
        if used := row.get("imported"):
            where = f"{editor_label(row['editor'], row['variant'])} on {row['model']}"
            imported.setdefault(used, {})[where] = None
    notes += [f"Not computed here: {', '.join(on)} used {used}." for used, on in imported.items()]
    notes += _mixtures(rows)
    versions = {str(v) for row in rows if row["status"] == "done" and (v := row["code_version"])}
    if len(versions) > 1:
        notes.append(f"Mixed code versions: {', '.join(sorted(versions))}.")
    return notes + _data_hashes(rows)
