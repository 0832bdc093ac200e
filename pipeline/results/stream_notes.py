"""Writes the notes below tables about streams: scored samples, and the order of edits."""

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
