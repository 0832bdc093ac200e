"""Writes the notes below tables whose scores come from a judge: which judge, and what it missed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.results.judge.scores import JUDGED


def judge_notes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Who has judged the answers of the cells among some rows of `runs` that have such, and when.

    Args:
        rows: Rows of `query.runs`, which have `judge` where one has judged.
    """
    waiting: set[str] = set()
    judged: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["protocol"] != JUDGED or row["status"] != "done":
            continue
        if (about := row.get("judge")) is None:
            waiting.add(row["cell"])
        else:
            place = (about["model"], about["prompt_version"])
            judged.setdefault(place, {})[row["cell"]] = about
    notes = []
    for (model, version), cells in sorted(judged.items()):
        found = list(cells.values())
        days = sorted({str(one[end])[:10] for one in found for end in ("from", "to") if one[end]})
        when = f", {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
        said = f"{JUDGED}: the judge is the language model {model} (prompt {version}{when})"
        if neither := sum(one["unparsable"] for one in found):
            said += f"; {neither} replies say neither right nor wrong and count in no mean"
        notes.append(f"{said}.")
    if len(judged) > 1:
        notes.append(f"{JUDGED}: figures of different judges are not comparable.")
    if waiting:
        n = len(waiting)
        notes.append(f"{JUDGED}: the answers of {n} cell{'s' * (n > 1)} are not judged yet.")
    return notes
