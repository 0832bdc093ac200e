"""SQL views and queries over a lake; the only file that imports duckdb.

The views `runs`, `edits`, `curves` and `cells` show done cells only, as the manifest names them,
each at every address at which a grid asks for it (see `pipeline.results.lake.addresses`);
`runs` and `cells` show the others too, with their status: a row without scores, and in `runs` one
for each checkpoint that a failed cell had reached, none of them final; a cell that is contained in
one that failed has none of these. A connection lives in memory
and cannot reach a file, so no query changes a lake.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from itertools import count
from typing import Any, Literal, TypeAlias

import duckdb

from pipeline.results.lake.key_versions import averaged_settings
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import BARE, INSTRUCTED, SHUFFLED, CellRecord, imported_words
from pipeline.results.sheets import Head, Sheet, as_csv, as_terminal
from rledit.errors import UserError

Connection: TypeAlias = duckdb.DuckDBPyConnection  # for annotations elsewhere

Format = Literal["table", "csv", "json"]
FORMATS: tuple[Format, ...] = ("table", "csv", "json")

_ADDRESS = (
    "grid, cell_key AS cell, editor, variant, model, dataset, scale, seed, batch_size, n_batches"
)
_LABELS = "grid, variant, model, dataset, scale"
_SCORES = "efficacy, generalization, specificity, specificity_self"
_ADDRESS_ORDER = "grid, model, dataset, editor, variant, n_batches, batch_size, seed, cell"


def _placed(table: str) -> str:
    """Rows of a table at all addresses of their cells.

    The address in the rows is that of whoever wrote them, and their key the one in the cell's
    files.
    """
    rows = (
        f"SELECT cell_key AS stored_key, * EXCLUDE (cell_key, {_LABELS}, editor, seed, "
        f"batch_size, n_batches) FROM {table}"
    )
    cells = (
        f"SELECT stored_key, cell_key, {_LABELS}, editor, seed, batch_size, n_batches, "
        "asked_protocols, asked_from, asked_edits FROM lake_cells"
    )
    return f"({rows}) JOIN ({cells}) USING (stored_key)"


# Of a cell that is contained in another, the rows that it asks for.
_OF_ITS_STREAM = "(asked_edits IS NULL OR checkpoint <= asked_edits)"
_OF_ITS_EDITS = "(asked_edits IS NULL OR edit_index < asked_edits)"
_FROM = "coalesce(asked_from, 0)"
_OF_ITS_PROTOCOLS = (
    "(asked_protocols IS NULL OR protocol IS NULL OR list_contains(asked_protocols, protocol))"
)
_OF_ITS_JUDGE = "(asked_protocols IS NULL OR list_contains(asked_protocols, 'wild_judge'))"
_OF_ITS_STEPS = (
    "(asked_edits IS NULL OR step <= asked_edits OR metric SIMILAR TO '(train|validation)_.*')"
)


_VIEWS = {
    "runs": f"""
        SELECT c.grid, c.cell_key AS cell, c.editor, c.variant, c.model, c.dataset, c.scale,
               c.seed, c.batch_size, c.n_batches, s.n_edits,
               CASE WHEN c.asked_edits IS NULL THEN s.final ELSE s.n_edits = c.asked_edits END
               AS final, s.protocol,
               coalesce(c.identity->>'$.model.prompt.template', '{BARE}')
               || CASE WHEN c.identity->>'$.dataset.instruction' IS NULL THEN ''
               ELSE '{INSTRUCTED}' END AS prompt, s.efficacy,
               s.generalization, s.specificity, s.specificity_self, c.train_seconds, c.edit_ms,
               c.peak_memory_gb, c.data_hash, c.code_version, c.status,
               coalesce(c.resolved->>'$.remark', '') AS remark,
               CAST(c.identity->>'$.scored_edits' AS INTEGER) AS scored_edits,
               coalesce(c.identity->>'$.dataset.order', '{SHUFFLED}') AS stream_order
        FROM lake_cells c JOIN (
            SELECT cell_key AS stored_key, * EXCLUDE (cell_key) FROM lake_scores
            UNION ALL BY NAME
            SELECT DISTINCT stored_key FROM lake_cells WHERE status <> 'done'
        ) s USING (stored_key)
        WHERE (s.checkpoint IS NULL OR ({_OF_ITS_STREAM} AND s.checkpoint >= {_FROM}
                                        AND (asked_edits IS NULL OR c.status = 'done')))
              AND {_OF_ITS_PROTOCOLS}""",
    "edits": f"""
        SELECT {_ADDRESS}, checkpoint, protocol, edit_index,
               CASE WHEN asked_edits IS NULL THEN batch_index ELSE edit_index // batch_size END
               AS batch_index, edit_id, {_SCORES}, superseded
        FROM {_placed("lake_edits")}
        WHERE {_OF_ITS_STREAM} AND {_OF_ITS_EDITS} AND {_OF_ITS_PROTOCOLS}""",
    "answers": f"""
        SELECT {_ADDRESS}, checkpoint, edit_index, edit_id, probe, probe_index, prompt, target,
               before, answer, before_logprob, target_logprob, had_target, has_target, is_target,
               superseded, tokens
        FROM {_placed("lake_answers")} LEFT JOIN (
            SELECT cell_key AS stored_key, edit_index, probe, probe_index, answer AS before,
                   target_logprob AS before_logprob, has_target AS had_target
            FROM lake_answers WHERE checkpoint = 0
        ) USING (stored_key, edit_index, probe, probe_index)
        WHERE checkpoint > 0 AND {_OF_ITS_STREAM} AND {_OF_ITS_EDITS}""",
    "free_answers": f"""
        SELECT {_ADDRESS}, checkpoint, edit_index, edit_id, probe, probe_index, prompt, target,
               answer, matches, counted, superseded, judge, reply, verdict
        FROM {_placed("lake_free_answers")}
        WHERE {_OF_ITS_STREAM} AND {_OF_ITS_EDITS} AND {_OF_ITS_JUDGE}""",
    "curves": f"""
        SELECT {_ADDRESS}, step, metric, value
        FROM {_placed("lake_steps")} WHERE {_OF_ITS_STEPS}""",
    "cells": f"""
        SELECT {_ADDRESS}, * EXCLUDE (cell_key, grid, editor, variant, model, dataset, scale, seed,
               batch_size, n_batches, stored_key, asked_protocols, asked_from, asked_edits)
        FROM lake_cells""",
}
VIEWS = tuple(_VIEWS)
_VIEWS_LINE = f"Views: {', '.join(VIEWS)}; DESCRIBE runs lists the columns of one"


class QueryError(UserError, ValueError):
    """A statement that cannot be answered, with what could have been asked."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """An answer: names of the columns, each another, and rows of plain Python values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def connect(lake: str | Lake, records: Sequence[CellRecord] | None = None) -> Connection:
    """Opens an in-memory database with the views over a lake.

    Args:
        records: what `Lake.shown` gives, if the caller has read it already; only these cells are
            seen, at these addresses.

    Raises:
        QueryError: the location does not exist. An existing one without cells is fine: its views
            have no rows.
    """
    lake = lake if isinstance(lake, Lake) else Lake(lake)
    if not lake.exists():
        raise QueryError(
            f"there is no lake at {lake.storage}: run a grid first, or name another with --lake"
        )
    return _open(lake, lake.shown() if records is None else records)


def database(tables: Mapping[str, Any]) -> Connection:
    """An in-memory database over Arrow datasets or pandas frames, by name."""
    connection = duckdb.connect()
    for name, table in tables.items():
        connection.register(name, table)
    return connection


def _open(lake: Lake, records: Sequence[CellRecord]) -> Connection:
    tables = ("cells", "scores", "edits", "steps", "answers", "free_answers")
    connection = database({f"lake_{table}": lake.dataset(table, records) for table in tables})
    for name, sql in _VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {sql}")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def query(sql: str, lake: str | Lake | Connection) -> Result:
    """Answers one or more SQL statements; the last one's rows are returned.

    Args:
        lake: where to ask; an open connection of `connect` saves reading the manifest again.

    Raises:
        QueryError: the statement is wrong or not allowed; of an unknown name the message lists
            views and columns.
    """
    connection = lake if isinstance(lake, duckdb.DuckDBPyConnection) else connect(lake)
    try:
        answer = connection.execute(sql)
        if answer is None:
            raise QueryError(f"the statement is empty\n{_VIEWS_LINE}")
        columns = _numbered([column[0] for column in answer.description or ()])
        return Result(columns=columns, rows=tuple(answer.fetchall()))
    except duckdb.PermissionException as error:
        raise QueryError(f"{error}\nA query may read the views only: {', '.join(VIEWS)}") from None
    except (duckdb.CatalogException, duckdb.BinderException) as error:  # an unknown name
        raise QueryError(f"{error}\n{describe(connection)}") from None
    except duckdb.Error as error:
        if "'pytz'" in str(error):  # which duckdb asks for where such a value becomes Python's
            raise QueryError(
                "a time with a time zone cannot be shown: CAST it AS TIMESTAMP or AS VARCHAR"
            ) from None
        raise QueryError(f"{error}\n{_VIEWS_LINE}") from None


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Names of columns, those that are there before with a number: a, a_1, a_2."""
    found: dict[str, None] = {}
    for name in names:
        if name in found:
            name = next(n for i in count(1) if (n := f"{name}_{i}") not in {*names, *found})
        found[name] = None
    return tuple(found)


def runs(
    lake: str | Lake | Connection,
    grid: str | None = None,
    *,
    final: bool = True,
) -> list[dict[str, Any]]:
    """Rows of the view `runs`, in the order of their address.

    Args:
        final: keep only the last checkpoint of each cell, and cells without scores. A longer stream
            that was scored for a shorter one answers for it, with its own costs. A row then has
            `not_measured` (what → why) where the cell's data has nothing to measure it on,
            `partly_measured` (score → edits that it is of) where some of its edits have nothing,
            `imported` where it used published statistics instead of its own, `settings`, which
            seeds must agree in to be averaged (see `averaged_settings`),
            `reason` where it has no result, and of a model that was trained on the spot
            `parameters`, `preset` where it has the settings of a published model, and `judge`
            where one has judged its answers (see `results.judge.judging`).
    """
    connection = lake if isinstance(lake, duckdb.DuckDBPyConnection) else connect(lake)
    of = "TRUE" if grid is None else f"grid = {quoted(grid)}"
    order = f"ORDER BY {_ADDRESS_ORDER}, n_edits, protocol"
    if not final:
        return query(f"SELECT * FROM runs WHERE {of} {order}", connection).dicts()
    own = query(
        f"SELECT * FROM runs WHERE {of} AND (final OR final IS NULL) {order}", connection
    ).dicts()
    prefixes = query(
        f"""SELECT runs.* REPLACE (shorter AS n_batches, TRUE AS final)
        FROM (SELECT cell, {_LABELS}, unnest(CAST(identity->'$.also_after' AS INTEGER[])) AS shorter
              FROM cells WHERE {of}) JOIN runs USING (cell, {_LABELS})
        WHERE n_edits = shorter * batch_size AND status = 'done' {order}""",
        connection,
    ).dicts()
    # A stream's own cell comes before a longer one, and one longer one before another.
    answering = {_place(row): row["cell"] for row in own}
    own += [
        row for row in prefixes if answering.setdefault(_place(row), row["cell"]) == row["cell"]
    ]
    _add_remarks(own, of, connection)
    return sorted(own, key=lambda row: [row[name] for name in _ADDRESS_ORDER.split(", ")])


def _add_remarks(rows: Sequence[dict[str, Any]], of: str, connection: Connection) -> None:
    """Say in each row what a table must say of its cell and the view has no column for."""
    sql = f"""SELECT cell, reason, resolved->'$.not_measured' AS not_measured,
        resolved->'$.partly_measured' AS partly_measured,
        identity,
        CAST(resolved->>'$.parameters' AS BIGINT) AS parameters,
        resolved->>'$.preset.name' AS preset, resolved->'$.judge' AS judge
        FROM cells WHERE {of}"""
    found: dict[str, dict[str, Any]] = {}
    for said in query(sql, connection).dicts():
        for name in ("not_measured", "partly_measured", "judge"):
            if said[name] is not None:
                said[name] = json.loads(said[name])
        identity = json.loads(said.pop("identity") or "{}")
        said["imported"] = imported_words(identity) or None
        said["settings"] = averaged_settings(identity)
        found[said.pop("cell")] = {k: v for k, v in said.items() if v is not None}
    for row in rows:
        row.update(found.get(row["cell"], {}))


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The address without the cell's key."""
    return tuple(row[name] for name in _ADDRESS.split(", ") if not name.startswith("cell_key"))


def quoted(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def describe(connection: Connection) -> str:
    """The views of a connection, one line each with their columns."""
    lines = []
    for name in VIEWS:
        try:
            columns = connection.execute(f"SELECT * FROM {name} LIMIT 0").description or ()
        except duckdb.Error:  # the statement that failed had dropped or replaced the view
            continue
        lines.append(f"  {name}: {', '.join(column[0] for column in columns)}")
    return "\n".join(["Views and their columns:", *lines])


def render(result: Result, fmt: str = "table") -> str:
    """Formats an answer for a terminal, or as CSV or JSON.

    Raises:
        QueryError: the format is unknown.
    """
    if fmt == "table":
        return _as_table(result)
    if fmt == "csv":
        return as_csv(result.columns, result.rows).rstrip("\n")
    if fmt == "json":
        return json.dumps(
            [{name: _plain(value) for name, value in row.items()} for row in result.dicts()],
            indent=1,
            allow_nan=False,
        )
    raise QueryError(f"unknown format {fmt!r}; choose from {', '.join(FORMATS)}")


def _as_table(result: Result) -> str:
    heads = [
        Head(label=name, left=not _numeric([row[i] for row in result.rows]))
        for i, name in enumerate(result.columns)
    ]
    rows = [[_shown(value) for value in row] for row in result.rows]
    count = f"({len(rows)} row{'' if len(rows) == 1 else 's'})"
    return "\n".join([*as_terminal(Sheet(heads=heads, rows=rows)), count])


def _numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    numbers = (isinstance(v, int | float | Decimal) and not isinstance(v, bool) for v in known)
    return bool(known) and all(numbers)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(_plain(value)).replace("\n", " ")


def _plain(value: Any) -> Any:
    """A value that JSON can hold; NaN and infinities become text, which strict JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
