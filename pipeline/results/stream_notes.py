"""Writes the notes below tables about streams: scored samples and parts, and the order of edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.results.lake.records import SHUFFLED


def samples(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of which streams a sample of the edits was scored."""
    found = {(row.get("scored_edits"), row["n_batches"] * row["batch_size"]) for row in rows}
    return [
        f"Scored: a sample of {some:,} of the {n:,} edits of a stream."
        for some, n in sorted((some, n) for some, n in found if some is not None and some < n)
    ]


_PARTS = {"generalization": ("Gen", "rephrase"), "specificity": ("Spe", "unrelated prompt")}


def parts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which scores are of a part of the edits only, as the others bring no prompts for them."""
    found: dict[tuple[str, str], dict[tuple[int, int], None]] = {}
    for row in rows:
        of = row.get("partly_measured") or {}
        for name in _PARTS:
            if name in of:
                found.setdefault((row["dataset"], name), {})[of[name], of["edits"]] = None
    return [
        f"{_PARTS[name][0]} on {dataset}: of {_range([n for n, _ in counts])} of "
        f"{_range([n for _, n in counts])} edits, as the others bring no {_PARTS[name][1]}."
        for (dataset, name), counts in sorted(found.items())
    ]


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def orders(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of which datasets the streams are not drawn by lot."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["status"] == "done":
            found.setdefault(row["dataset"], {})[row.get("stream_order") or SHUFFLED] = None
    return [
        f"Order of the edits of {dataset}: {', '.join(sorted(orders))}."
        for dataset, orders in sorted(found.items())
        if set(orders) != {SHUFFLED}
    ]
