"""Lifelong editing: batch after batch into one model, measured at checkpoints, no reset between."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rledit.editors.base import Editor
from rledit.finite import NonFiniteError, require_finite, require_finite_weights
from rledit.lazy_torch import torch
from rledit.records import Edit
from rledit.scoring import EditScore, Scorer


@dataclass(frozen=True, kw_only=True)
class BatchEdited:
    """A batch was written into the model.

    Attributes:
        n_edits: Edits applied so far.
        metrics: What the editor measured.
        seconds: Wall time of the edit alone.
    """

    n_edits: int
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StreamScored:
    """All edits so far were scored.

    Attributes:
        n_edits: Edits applied, and scored.
        scores: One per edit and protocol.
        seconds: Wall time of scoring.
    """

    n_edits: int
    scores: list[EditScore]
    seconds: float


def checkpoints(n_batches: int, count: int) -> tuple[int, ...]:
    """`count` evenly spaced batch numbers, the last one always among them; at most all."""
    count = min(count, n_batches)
    return tuple(sorted({round(n_batches * (i + 1) / count) for i in range(count)} - {0}))


def run_stream(
    editor: Editor,
    edits: Sequence[Edit],
    batch_size: int,
    score_after: Sequence[int],
    scorer: Scorer,
    start: int = 0,
) -> Iterator[BatchEdited | StreamScored]:
    """Edit a stream and score it at checkpoints.

    Args:
        editor: The editor, trained if it needs training, its state loaded when resuming.
        edits: All edits of the stream; cut into batches of `batch_size`, the last may be smaller.
        batch_size: Edits per batch.
        score_after: Numbers of batches after which everything edited so far is scored.
        scorer: Made from the same edits on the unedited model.
        start: Batches already written into the model.

    Yields:
        `BatchEdited` after every batch, `StreamScored` after those in `score_after`.

    Raises:
        NonFiniteError: An edit, the weights it leaves or an answer is no number; names the batch.
    """
    model = editor.model
    starts = range(start * batch_size, len(edits), batch_size)
    for number, first in enumerate(starts, start=start + 1):
        members = edits[first : first + batch_size]
        batch = editor.encode(members)
        n_edits = first + len(members)
        if not scorer.resident:
            # What the cache holds then depends on the way here; a resumed stream comes another.
            model.prefix_cache.clear()
        _synchronise(model.device)
        began = time.perf_counter()
        try:
            metrics = editor.edit(batch)
            _synchronise(model.device)
            seconds = time.perf_counter() - began
            require_finite_weights(model)
            require_finite(metrics, f"what {editor.name} measures of the edit", model)
        except NonFiniteError as error:
            raise error.at(f"editing batch {number} (edits {first + 1} to {n_edits})") from None
        yield BatchEdited(n_edits=n_edits, metrics=metrics, seconds=seconds)
        if number in score_after:
            if not scorer.resident:
                model.prefix_cache.clear()
            began = time.perf_counter()
            try:
                scores = scorer.score(n_edits)
            except NonFiniteError as error:
                raise error.at(after_batch(number, n_edits)) from None
            yield StreamScored(n_edits=n_edits, scores=scores, seconds=time.perf_counter() - began)


def after_batch(number: int, n_edits: int) -> str:
    """The moment after a batch, counted from 1, as errors name it."""
    return f"after batch {number} ({n_edits} edits)" if number else "before the first edit"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
