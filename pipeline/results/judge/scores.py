"""Scores of a cell from a judge's verdicts on its free answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.results.judge.replies import Reply

Rows = list[dict[str, Any]]

JUDGED = "wild_judge"
UNPARSABLE, AGREEMENT = "judge_unparsable", "judge_agreement"


def asks_judge(row: Mapping[str, Any]) -> bool:
    """Whether a judge is asked about a free answer: not where it belongs into no mean."""
    return bool(row["counted"]) and not row["superseded"]


def rows_of(columns: Mapping[str, Sequence[Any]]) -> Rows:
    """Columns as rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def judged(rows: Rows, reply_to: Callable[[Mapping[str, Any]], Reply]) -> Rows:
    """Rows of the table `free_answers` with the judge's replies."""
    found = []
    for row in rows:
        reply = reply_to(row) if asks_judge(row) else None
        said = {
            "judge": None if reply is None else reply.model,
            "reply": None if reply is None else reply.reply,
            "verdict": None if reply is None else reply.verdict,
        }
        found.append({**row, **said})
    return found


def edit_scores(rows: Rows) -> dict[tuple[int, int], dict[str, float | None]]:
    """(checkpoint, edit) → efficacy and generalization in percent, by verdicts.

    None where no reply says whether the answer is right.
    """
    verdicts: dict[tuple[int, int], dict[str, list[bool | None]]] = {}
    for row in rows:
        place = verdicts.setdefault((row["checkpoint"], row["edit_index"]), {})
        place.setdefault(row["probe"], []).append(row["verdict"])
    return {
        place: {
            "efficacy": _percent(own.get("edit", ())),
            "generalization": _percent(own.get("rephrase", ())),
        }
        for place, own in verdicts.items()
    }


def with_scores(rows: Rows, scores: Mapping[tuple[int, int], Mapping[str, Any]]) -> Rows:
    """Rows of the table `edits` with the scores of the judged protocol."""
    return [
        {**row, **scores.get((row["checkpoint"], row["edit_index"]), {})}
        if row["protocol"] == JUDGED
        else row
        for row in rows
    ]


def with_means(rows: Rows, free: Rows, scores: Mapping[tuple[int, int], Mapping[str, Any]]) -> Rows:
    """Rows of the table `scores` with the means of the judged protocol over edits that stand."""
    standing = {(r["checkpoint"], r["edit_index"]) for r in free if not r["superseded"]}
    found = []
    for row in rows:
        if row["protocol"] == JUDGED:
            own = [scores[place] for place in sorted(standing) if place[0] == row["checkpoint"]]
            means = {name: _mean([s[name] for s in own]) for name in ("efficacy", "generalization")}
            row = {**row, **means}
        found.append(row)
    return found


def counts(rows: Rows) -> Rows:
    """Rows of the table `steps`: replies that say neither, and how often judge and match agree."""
    found: Rows = []
    for checkpoint in sorted({row["checkpoint"] for row in rows}):
        own = [r for r in rows if r["checkpoint"] == checkpoint and r["judge"] is not None]
        neither = sum(row["verdict"] is None for row in own)
        found.append({"step": checkpoint, "metric": UNPARSABLE, "value": float(neither)})
        if (agreed := agreement(own)) is not None:
            found.append({"step": checkpoint, "metric": AGREEMENT, "value": agreed})
    return found


def agreement(rows: Rows) -> float | None:
    """Percent of the answers on which the judge and the match of `wild` say the same."""
    return _percent([r["verdict"] == r["matches"] for r in rows if r["verdict"] is not None])


def _percent(verdicts: Sequence[bool | None]) -> float | None:
    known = [verdict for verdict in verdicts if verdict is not None]
    return 100 * sum(known) / len(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
