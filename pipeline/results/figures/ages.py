"""Efficacy of a stream's edits by their age, in bins."""

from __future__ import annotations

from typing import Any

from pipeline.results.figures.subject import Subject
from pipeline.results.query import quoted

_BINS = 10  # a stream of 400 batches is still a readable line


def efficacy_by_age(subject: Subject) -> list[dict[str, Any]]:
    """Mean efficacy by editor, stream, checkpoint and age.

    Age counts the edits applied after the scored edit's own batch, rounded down to a tenth of the
    stream. An edit that a later one rewrites is not expected to hold, and is left out.

    Returns:
        Rows (editor, variant, n_batches, batch_size, checkpoint, age, score).
    """
    width = f"(batch_size * CAST(ceil(n_batches / {_BINS}) AS INTEGER))"
    return subject.ask(
        f"""
        SELECT editor, variant, n_batches, batch_size, checkpoint,
               {width} * (greatest(0, checkpoint - (batch_index + 1) * batch_size) // {width})
                   AS age,
               avg(efficacy) AS score
        FROM edits
        WHERE {{here}} AND protocol = {quoted(subject.protocol)} AND NOT superseded
              AND efficacy IS NOT NULL
        GROUP BY ALL ORDER BY ALL"""
    )
