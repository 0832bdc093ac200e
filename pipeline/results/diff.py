"""Comparison of two lakes: same results, times aside, bitwise where that can be asked.

- Cells are matched by key, whatever their grids call them; those of earlier versions by the key
  they have today. Thread and rank counts are part of a cell's key, so cells left over are
  matched by the rest of their identity.
- Where both cells ran with equal threads and ranks, floats must agree bitwise; otherwise to 1e-5
  (relative, or absolute below 1).
- Not compared: times, memory, the machine's library versions, execution settings. A different
  code version is noted, because comparing versions is a reason to call this.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from pipeline.results.lake.identity import without_labels
from pipeline.results.lake.lake import Lake, LakeError
from pipeline.results.lake.records import CellRecord
from pipeline.results.lake.schemas import DATA_TABLES, OPTIONAL_TABLES, ROW_KEYS, TABLES

TOLERANCE = 1e-5
SHOWN = 20
ASIDE_SUFFIXES = ("_seconds", "_ms", "_gb")  # of metric names in `steps`: times and memory

_CELL_COLUMNS = ("data_hash", "model_hash", "n_edits", "n_contradicting")
_EXECUTION = ("threads", "ranks")


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


@dataclass
class _Findings:
    lines: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, place: str, text: str) -> None:
        self.counts[place] += 1
        if len(self.lines) < SHOWN:
            self.lines.append(text)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def report(self) -> tuple[str, ...]:
        if self.total <= len(self.lines):
            return (*self.lines, *self.notes)
        counts = [f"  {place}: {n}" for place, n in sorted(self.counts.items())]
        more = f"… and {self.total - len(self.lines)} more; differences by place:"
        return (*self.lines, more, *counts, *self.notes)


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
    findings = _Findings()
    first, second = ({r.address.cell_key: r for r in lake.manifest(grid)} for lake in lakes)
    if grid is not None and not first and not second:
        raise LakeError(_no_grid(grid, lakes))
    of = "" if grid is None else f" of grid {grid!r}"
    for name, lake, records in (("A", lakes[0], first), ("B", lakes[1], second)):
        if not any(record.done for record in records.values()):
            findings.add("cells", f"{name} ({lake.storage}) has no finished cell{of} to compare")
    pairs = _pairs(first, second, findings)
    exact = 0
    for left, right in pairs:
        bitwise = _execution(left) == _execution(right)
        exact += bitwise
        _compare_manifest(left, right, findings)
        if left.done and right.done:
            for table in _compared(left, right, findings):
                _compare_rows(table, (lakes[0], left), (lakes[1], right), bitwise, findings)
    _note_code_versions(pairs, findings)
    return DiffReport(
        equal=findings.total == 0,
        rule=_rule(exact, len(pairs) - exact),
        lines=findings.report(),
        n_differences=findings.total,
    )


def _compared(left: CellRecord, right: CellRecord, findings: _Findings) -> list[str]:
    """The tables that both cells have; that one has more to look at is noted, not judged."""
    tables = list(DATA_TABLES)
    for table in OPTIONAL_TABLES:
        has = [table in record.files for record in (left, right)]
        if all(has):
            tables.append(table)
        elif any(has):
            name = "A" if has[0] else "B"
            findings.notes.append(f"note: {_named(left)}: only {name} has {table}; not judged")
    return tables


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
    first: Mapping[str, CellRecord], second: Mapping[str, CellRecord], findings: _Findings
) -> list[tuple[CellRecord, CellRecord]]:
    """Matches cells by key, then by identity without execution; reports those without partner."""
    pairs = [(first[key], second[key]) for key in sorted(first.keys() & second.keys())]
    left = _by_signature([first[key] for key in sorted(first.keys() - second.keys())])
    right = _by_signature([second[key] for key in sorted(second.keys() - first.keys())])
    pairs += [(left[key], right[key]) for key in sorted(left.keys() & right.keys())]
    for name, other, alone in (("A", "B", left.keys() - right), ("B", "A", right.keys() - left)):
        for key in sorted(alone):
            record = (left if name == "A" else right)[key]
            findings.add("cells", f"{_named(record)} is in {name} and not in {other}")
    return pairs


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
    identity = _without_execution(without_labels(record.values["identity"]))
    return json.dumps(identity, sort_keys=True)


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


def _compare_manifest(left: CellRecord, right: CellRecord, findings: _Findings) -> None:
    _compare_value("status", left.status, right.status, left, findings)
    if not (left.done and right.done):
        return
    for name in _CELL_COLUMNS:
        _compare_value(name, left.values[name], right.values[name], left, findings)
    _compare_value(
        "protocols",
        sorted(left.values["protocols"]),
        sorted(right.values["protocols"]),
        left,
        findings,
    )
    _compare_value(
        "identity",
        _without_execution(without_labels(left.values["identity"])),
        _without_execution(without_labels(right.values["identity"])),
        left,
        findings,
    )


def _compare_value(name: str, a: Any, b: Any, record: CellRecord, findings: _Findings) -> None:
    if a != b:
        findings.add(f"cells.{name}", f"{_named(record)}, cells.{name}: A {a!r}, B {b!r}")


def _compare_rows(
    table: str,
    left: tuple[Lake, CellRecord],
    right: tuple[Lake, CellRecord],
    bitwise: bool,
    findings: _Findings,
) -> None:
    keys = ROW_KEYS[table]
    rows_a, rows_b = (_keyed(table, lake.columns(table, record)) for lake, record in (left, right))
    cell = _named(left[1])
    for name, other, alone in (
        ("A", "B", rows_a[0].keys() - rows_b[0].keys()),
        ("B", "A", rows_b[0].keys() - rows_a[0].keys()),
    ):
        for key in sorted(alone):
            place = _place(keys, key)
            findings.add(f"{table} rows", f"{cell}, {table}, {place}: in {name}, not in {other}")
    common = [key for key in rows_a[0] if key in rows_b[0]]
    for column, (kind, _) in TABLES[table].items():
        if column in keys:
            continue
        a = [rows_a[1][column][rows_a[0][key]] for key in common]
        b = [rows_b[1][column][rows_b[0][key]] for key in common]
        for i in _unequal(a, b, is_float=kind == "float64", bitwise=bitwise):
            findings.add(
                f"{table}.{column}",
                f"{cell}, {table}.{column}, {_place(keys, common[i])}: A {a[i]!r}, B {b[i]!r}",
            )


def _keyed(
    table: str, columns: Mapping[str, Sequence[Any]]
) -> tuple[dict[tuple[Any, ...], int], Mapping[str, Sequence[Any]]]:
    """Maps each row's key to its place in the columns, leaving out rows that hold times."""
    keys = zip(*(columns[name] for name in ROW_KEYS[table]), strict=True)
    places = {key: i for i, key in enumerate(keys)}
    if table == "steps":
        places = {k: i for k, i in places.items() if not k[0].endswith(ASIDE_SUFFIXES)}
    return places, columns


def _place(keys: Sequence[str], values: Sequence[Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in zip(keys, values, strict=True))


def _unequal(a: Sequence[Any], b: Sequence[Any], *, is_float: bool, bitwise: bool) -> list[int]:
    """Positions where two columns differ; null equals null, NaN equals NaN."""
    if not is_float:
        return [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    null_a, null_b = (np.array([v is None for v in values], dtype=bool) for values in (a, b))
    x, y = (
        np.array([math.nan if v is None else v for v in values], dtype=np.float64)
        for values in (a, b)
    )
    if bitwise:
        same = (x.view(np.int64) == y.view(np.int64)) | (np.isnan(x) & np.isnan(y))
    else:
        # 1e-5 of the larger one, and 1e-5 itself below 1: symmetric in A and B.
        with np.errstate(invalid="ignore"):
            bound = TOLERANCE * np.maximum(1.0, np.maximum(np.abs(x), np.abs(y)))
            close = np.abs(x - y) <= bound
        same = np.where(np.isfinite(x) & np.isfinite(y), close, x == y) | (
            np.isnan(x) & np.isnan(y)
        )
    return np.flatnonzero(~same | (null_a != null_b)).tolist()


def _note_code_versions(
    pairs: Sequence[tuple[CellRecord, CellRecord]], findings: _Findings
) -> None:
    differing = Counter(
        (left.values["code_version"], right.values["code_version"])
        for left, right in pairs
        if left.values["code_version"] != right.values["code_version"]
    )
    for (a, b), n in sorted(differing.items()):
        findings.notes.append(
            f"note: code_version differs for {n} cells (A {a}, B {b}); not judged"
        )
