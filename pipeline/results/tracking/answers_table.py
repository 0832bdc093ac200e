"""Answers of a cell as a table of its tracked run: a prompt a row, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.results.lake.records import CellResult
from rledit.written_answers import KINDS

ARTIFACT = "answers.json"
_PLACE = ("edit_index", "probe", "probe_index")
_COLUMNS = (
    "edit", "probe", "prompt", "target", "before", "after", "said_target_before", "says_target",
    "target_logprob_before", "target_logprob", "superseded",
)  # fmt: skip


def answers_table(result: CellResult) -> dict[str, list[Any]]:
    """Column → values, in the order of the stream; empty where the cell has no answers.

    The answers are those after the last edits at which some were kept.
    """
    rows = sorted(rows_of(result.answers), key=_order)
    before = {tuple(row[n] for n in _PLACE): row for row in rows if row["checkpoint"] == 0}
    last = max((row["checkpoint"] for row in rows), default=0)
    table: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    if not last:
        return {}
    for row in rows:
        if row["checkpoint"] != last:
            continue
        was = before.get(tuple(row[n] for n in _PLACE), {})
        values = (
            row["edit_index"] + 1, row["probe"], row["prompt"], row["target"], was.get("answer"),
            row["answer"], was.get("has_target"), row["has_target"], was.get("target_logprob"),
            row["target_logprob"], row["superseded"],
        )  # fmt: skip
        for name, value in zip(_COLUMNS, values, strict=True):
            table[name].append(value)
    return table


def _order(row: Mapping[str, Any]) -> tuple[int, int, int]:
    return row["edit_index"], KINDS.index(row["probe"]), row["probe_index"]


def rows_of(table: Any) -> list[Mapping[str, Any]]:
    """The rows of a table that is given as rows or as columns."""
    if isinstance(table, Mapping):
        return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return list(table)
