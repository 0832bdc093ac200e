"""Comparison of two lakes: same results, times aside, bitwise where that can be asked.

- Cells are matched by key, whatever their grids call them; those of earlier versions by the key
  they have today. Thread and rank counts are part of a cell's key, so cells left over are
  matched by the rest of their identity.
- Where both cells ran with equal threads and ranks, floats must agree bitwise; otherwise to 1e-5
  (relative, or absolute below 1).
- A cell that is contained in another (`pipeline.results.lake.contained`) has no rows of its own.
- Not compared: times, memory, the machine's library versions, execution settings. A different
  code version is noted, because comparing versions is a reason to call this.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from pandas import DataFrame

from pipeline.results.lake.key_versions import without_labels
from pipeline.results.lake.lake import Lake, LakeError
from pipeline.results.lake.records import CellRecord
from pipeline.results.lake.schemas import DATA_TABLES, OPTIONAL_TABLES, ROW_KEYS, TABLES
from pipeline.results.query import Connection, database

TOLERANCE = 1e-5
SHOWN = 20
ASIDE = "_(seconds|ms|gb)$"  # ends of metric names in `steps`: times and memory

_CELL_COLUMNS = ("data_hash", "model_hash", "n_edits", "n_contradicting")
_EXECUTION = ("threads", "ranks")
_TABLES = (*DATA_TABLES, *OPTIONAL_TABLES)

Pair = tuple[CellRecord, CellRecord]


@dataclass(frozen=True, kw_only=True)
class DiffReport:
    """What `diff_lakes` found.

    Attributes:
        equal: the verdict.
        rule: which comparison was used for how many cells.
        lines: the first differences, readable, then counts, then notes.
        n_differences: all differences, shown or not.
    """

    equal: bool
    rule: str
    lines: tuple[str, ...]
    n_differences: int

    def __str__(self) -> str:
        verdict = "equal" if self.equal else f"different ({self.n_differences} differences)"
        return "\n".join([*self.lines, f"rule: {self.rule}", f"result: {verdict}"])


class _Finding(NamedTuple):
    """A difference; the order is that of the pair of cells, the table and the column."""

    order: tuple[int, int, int]
    place: str
    text: str


def diff_lakes(a: str | Lake, b: str | Lake, grid: str | None = None) -> DiffReport:
    """Compares every cell of two lakes.

    Args:
        grid: compare the cells of this grid only.

    Raises:
        LakeError: a location is missing, neither lake has the grid, or a shard is corrupt.
    """
    lakes = [lake if isinstance(lake, Lake) else Lake(lake) for lake in (a, b)]
    for lake in lakes:
        if not lake.exists():
            raise LakeError(f"there is no lake at {lake.storage}: a diff needs two existing lakes")
    first, second = (
        {r.address.cell_key: r for r in lake.manifest(grid) if r.asked is None} for lake in lakes
    )
    if grid is not None and not first and not second:
        raise LakeError(_no_grid(grid, lakes))
    pairs, alone = _pairs(first, second)
    of = "" if grid is None else f" of grid {grid!r}"
    texts = [
        f"{name} ({lake.storage}) has no finished cell{of} to compare"
        for name, lake, records in zip("AB", lakes, (first, second), strict=True)
        if not any(record.done for record in records.values())
    ]
    findings = [_Finding((-1, 0, 0), "cells", text) for text in (*texts, *alone)]
    findings += _manifest_differences(pairs)
    findings += _row_differences(lakes, pairs)
    exact = sum(_execution(left) == _execution(right) for left, right in pairs)
    return DiffReport(
        equal=not findings,
        rule=_rule(exact, len(pairs) - exact),
        lines=(*_shown(findings), *_table_notes(pairs), *_version_notes(pairs)),
        n_differences=len(findings),
    )


def _shown(findings: Sequence[_Finding]) -> list[str]:
    """The first differences, and where there are more, how many there are at which place."""
    lines = [one.text for one in sorted(findings, key=lambda one: one.order)[:SHOWN]]
    if len(findings) > SHOWN:
        counts = Counter(one.place for one in findings)
        lines.append(f"… and {len(findings) - SHOWN} more; differences by place:")
        lines += [f"  {place}: {n}" for place, n in sorted(counts.items())]
    return lines


def _no_grid(grid: str, lakes: Sequence[Lake]) -> str:
    named = "; ".join(
        f"{name} ({lake.storage}) has {', '.join(lake.grids()) or 'none'}"
        for name, lake in zip("AB", lakes, strict=True)
    )
    near = get_close_matches(grid, [g for lake in lakes for g in lake.grids()], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"neither lake has a cell of grid {grid!r}{hint} Grids: {named}"


def _rule(exact: int, loose: int) -> str:
    texts = []
    if exact or not loose:
        texts.append(f"floats bitwise for {exact} cells (equal threads and ranks)")
    if loose:
        texts.append(f"floats to {TOLERANCE:g} for {loose} cells (threads or ranks differ)")
    return "; ".join(texts) + "; discrete columns equal; times aside"


def _execution(record: CellRecord) -> tuple[Any, ...]:
    return tuple(record.values[name] for name in _EXECUTION)


def _pairs(
    first: Mapping[str, CellRecord], second: Mapping[str, CellRecord]
) -> tuple[list[Pair], list[str]]:
    """Matches cells by key, then by identity without execution; says which have no partner."""
    pairs = [(first[key], second[key]) for key in sorted(first.keys() & second.keys())]
    left = _by_signature([first[key] for key in sorted(first.keys() - second.keys())])
    right = _by_signature([second[key] for key in sorted(second.keys() - first.keys())])
    pairs += [(left[key], right[key]) for key in sorted(left.keys() & right.keys())]
    only_a, only_b = sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys())
    alone = [f"{_named(left[key])} is in A and not in B" for key in only_a]
    return pairs, alone + [f"{_named(right[key])} is in B and not in A" for key in only_b]


def _by_signature(records: Sequence[CellRecord]) -> dict[tuple[str, int], CellRecord]:
    """Cells by signature; equal ones (one lake, two thread counts) are numbered, none is lost."""
    seen: Counter[str] = Counter()
    found = {}
    for record in records:
        signature = _signature(record)
        found[signature, seen[signature]] = record
        seen[signature] += 1
    return found


def _signature(record: CellRecord) -> str:
    return json.dumps(_identity(record), sort_keys=True)


def _identity(record: CellRecord) -> Any:
    return _without_execution(without_labels(record.values["identity"]))


def _without_execution(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {k: _without_execution(v) for k, v in settings.items() if k not in _EXECUTION}
    if isinstance(settings, list):
        return [_without_execution(value) for value in settings]
    return settings


def _named(record: CellRecord) -> str:
    a = record.address
    editor = f"{a.editor}/{a.variant}" if a.variant else a.editor
    stream = f"{a.n_batches}×{a.batch_size}"
    return (
        f"cell {a.cell_key} ({a.grid}, {a.model}, {a.dataset}, {editor}, {stream}, seed {a.seed})"
    )


def _manifest_differences(pairs: Sequence[Pair]) -> Iterator[_Finding]:
    for number, pair in enumerate(pairs):
        both_done = all(record.done for record in pair)
        a, b = (_compared(record, both_done) for record in pair)
        for name in a:
            if a[name] != b[name]:
                text = f"{_named(pair[0])}, cells.{name}: A {a[name]!r}, B {b[name]!r}"
                yield _Finding((number, 0, 0), f"cells.{name}", text)


def _compared(record: CellRecord, whole: bool) -> dict[str, Any]:
    """The columns of a cell's manifest row that must agree; `whole`: of a finished one."""
    found: dict[str, Any] = {"status": record.status}
    if whole:
        found |= {name: record.values[name] for name in _CELL_COLUMNS}
        found["protocols"] = sorted(record.values["protocols"])
        found["identity"] = _identity(record)
    return found


def _row_differences(lakes: Sequence[Lake], pairs: Sequence[Pair]) -> Iterator[_Finding]:
    """Compares all rows of the pairs in which both cells are done."""
    done = [n for n, pair in enumerate(pairs) if all(record.done for record in pair)]
    matched = [
        (n, *(r.stored_key for r in pairs[n]), len(set(map(_execution, pairs[n]))) == 1)
        for n in done
    ]
    tables: dict[str, Any] = {"pairs": DataFrame(matched, columns=["pair", "a", "b", "bitwise"])}
    for i, lake in enumerate(lakes):
        records = [pairs[n][i] for n in done]
        if broken := [text for r in records for text in lake.verify(r.address.cell_key)]:
            raise LakeError("\n".join(broken))
        tables |= {f"{'ab'[i]}_{table}": lake.dataset(table, records) for table in _TABLES}
    with database(tables) as connection:
        for place, table in enumerate(_TABLES if done else (), start=1):
            for pair, column, name, text in _of_table(table, connection):
                if table in OPTIONAL_TABLES and len(_having(table, pairs[pair])) == 1:
                    continue  # noted, not judged
                yield _Finding((pair, place, column), name, f"{_named(pairs[pair][0])}, {text}")


def _of_table(table: str, connection: Connection) -> Iterator[tuple[int, int, str, str]]:
    """Yields (pair, column from 1 on or 0 for a row that is missing, place, what differs)."""
    keys = ROW_KEYS[table]
    columns = [name for name in TABLES[table] if name not in keys]
    kept = f"NOT regexp_matches(metric, '{ASIDE}')" if table == "steps" else "TRUE"
    a, b = (
        f"(SELECT * FROM {side}_{table} JOIN pairs ON cell_key = pairs.{side} WHERE {kept}) {side}"
        for side in "ab"
    )
    same = {
        name: (_SAME_FLOATS if TABLES[table][name][0] == "float64" else _SAME).format(name)
        for name in columns
    }
    values = ", ".join(f"a.{name}, b.{name}, {sql}" for name, sql in same.items())
    rows = connection.execute(
        f"""SELECT pair, a.pair IS NULL AS not_in_a, b.pair IS NULL AS not_in_b,
               {", ".join(keys)}, {values}
        FROM {a} FULL JOIN {b} USING (pair, {", ".join(keys)})
        WHERE not_in_a OR not_in_b OR NOT ({" AND ".join(same.values())})
        ORDER BY not_in_a, pair, {", ".join(keys)}"""
    )
    for pair, not_in_a, not_in_b, *row in rows.fetchall():
        place = " ".join(f"{key}={value}" for key, value in zip(keys, row, strict=False))
        if not_in_a or not_in_b:
            sides = "in B, not in A" if not_in_a else "in A, not in B"
            yield pair, 0, f"{table} rows", f"{table}, {place}: {sides}"
            continue
        for i, name in enumerate(columns, start=1):
            ours, theirs, alike = row[len(keys) + 3 * (i - 1) :][:3]
            if not alike:
                text = f"{table}.{name}, {place}: A {ours!r}, B {theirs!r}"
                yield pair, i, f"{table}.{name}", text


# Null equals null, NaN equals NaN; between equal threads and ranks, -0.0 is not 0.0. Otherwise
# 1e-5 of the larger one, and 1e-5 itself below 1, which is symmetric in A and B.
_SAME = "a.{0} IS NOT DISTINCT FROM b.{0}"
_SAME_FLOATS = f"""CASE
    WHEN a.{{0}} IS NULL OR b.{{0}} IS NULL THEN a.{{0}} IS NULL AND b.{{0}} IS NULL
    WHEN a.bitwise THEN a.{{0}} = b.{{0}}
        AND (isnan(a.{{0}}) OR signbit(a.{{0}}) = signbit(b.{{0}}))
    ELSE a.{{0}} = b.{{0}} OR (isfinite(a.{{0}}) AND isfinite(b.{{0}})
        AND abs(a.{{0}} - b.{{0}}) <= {TOLERANCE} * greatest(1, abs(a.{{0}}), abs(b.{{0}}))) END"""


def _having(table: str, pair: Pair) -> list[str]:
    """Which of the two cells have a table: that one has more to look at is no difference."""
    return [name for name, record in zip("AB", pair, strict=True) if table in record.files]


def _table_notes(pairs: Sequence[Pair]) -> list[str]:
    return [
        f"note: {_named(pair[0])}: only {has[0]} has {table}; not judged"
        for pair in pairs
        for table in OPTIONAL_TABLES
        if all(record.done for record in pair) and len(has := _having(table, pair)) == 1
    ]


def _version_notes(pairs: Sequence[Pair]) -> list[str]:
    versions = Counter(tuple(record.values["code_version"] for record in pair) for pair in pairs)
    return [
        f"note: code_version differs for {n} cells (A {a}, B {b}); not judged"
        for (a, b), n in sorted(versions.items())
        if a != b
    ]
