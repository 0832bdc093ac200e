"""A whole job on a real model and real rows: train, edit a stream, score it; time and memory."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rledit.datasets.cut import cut
from rledit.datasets.edits import read_edits
from rledit.editors.rledit import RLEdit, RLEditConfig
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.records import Edit
from rledit.scoring import EditScore, Scorer
from rledit.stream import BatchEdited, StreamScored, checkpoints, run_stream
from rledit.tokenization import EditBatch
from rledit.training import Training
from rledit.validation import ValidationStream
from rledit.written_answers import sampled
from tests.benchmarks.machine import memory, reset_peak_memory

logger = logging.getLogger(__name__)

MODULES = ("gate:20-28", "up:20-28", "down:20-28")
"""Of SmolLM2-135M, as its preset has them."""
INITIAL_STEP = 1.5e-4
POINTS = 8
_VALIDATED = 10


def run_whole_job(
    model: Path,
    rows: tuple[Path, Path],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    n_batches: int = 400,
    batch_size: int = 20,
    trajectories: int = 12,
    trajectory_batches: int = 20,
    scored: int = 1000,
    modules: Sequence[str] = MODULES,
) -> dict[str, Any]:
    """Train RLEdit by its recipe `converged` and let it edit a stream.

    Args:
        model: Folder of a Hugging Face checkpoint.
        rows: Files of edits to train on (an eighth of them validates) and to evaluate on.
        device: Where it runs.
        dtype: Type of the model's weights.
        n_batches, batch_size: The stream.
        trajectories, trajectory_batches: Most trajectories of training, and their length.
        scored: Edits of the stream that are scored, at eight points.
        modules: Target modules.

    Returns:
        Seconds of loading, training, editing (also of an edit in each eighth of the stream) and
        scoring, the validations, the scores at every point, and peak memory.
    """
    reset_peak_memory(device)
    began = time.perf_counter()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device)
    editable = EditableModel(loaded, AutoTokenizer.from_pretrained(model), tuple(modules))
    seconds = {"load": time.perf_counter() - began}
    stream = _drawn(read_edits(rows[1]).edits, n_batches * batch_size)
    asked = {edit.prompt for edit in stream}
    apart = [edit for edit in read_edits(rows[0]).edits if edit.prompt not in asked]
    pools = cut(apart, {"train": 0.875, "validation": 0.125})
    editor = RLEdit(
        editable,
        RLEditConfig(
            modules=editable.modules,
            reference="converged",
            initial_step=INITIAL_STEP,
            train_steps=trajectories,
            trajectory_batches=trajectory_batches,
        ),
    )
    began = time.perf_counter()
    training = _trained(editor, pools["train"], pools["validation"], batch_size, trajectory_batches)
    seconds["train"] = time.perf_counter() - began
    logger.info("trained: %.1f s", seconds["train"])
    began = time.perf_counter()
    places = sampled(len(stream), scored, 0)
    scorer = Scorer(editable, stream, [protocol("token_accuracy")], places=places)
    before = _means(scorer.score(len(stream)))
    seconds["references"] = time.perf_counter() - began
    scores, spent = {0: before}, []
    seconds |= {"edit": 0.0, "score": 0.0}
    points = checkpoints(n_batches, POINTS)
    for event in run_stream(editor, stream, batch_size, points, scorer):
        if isinstance(event, BatchEdited):
            spent.append(event.seconds)
            seconds["edit"] += event.seconds
        elif isinstance(event, StreamScored):
            scores[event.n_edits] = _means(event.scores)
            seconds["score"] += event.seconds
            logger.info("after %d edits: %s, %s", event.n_edits, scores[event.n_edits], seconds)
    return {
        "seconds": seconds,
        "edit_seconds_by_part": _by_part(spent, batch_size),
        "validations": [v.record() for v in training.validations],
        "scores": scores,
        "peak_gb": memory(device)[1] * 1e-9,
    }


def _trained(
    editor: RLEdit, train: Sequence[Edit], held: Sequence[Edit], size: int, length: int
) -> Training:
    def draw(step: int) -> list[list[EditBatch]]:
        edits = random.Random(step).sample(list(train), length * size)
        return [[editor.encode(edits[i : i + size]) for i in range(0, len(edits), size)]]

    n = min(_VALIDATED, len(held) // size) * size
    training = Training(editor, draw, ValidationStream(editor, _drawn(held, n), size))
    for _ in training.run():
        pass
    return training


def _drawn(edits: Sequence[Edit], n: int) -> list[Edit]:
    if len(edits) < n:
        raise ValueError(f"a stream of {n} edits was asked of {len(edits)} rows")
    return random.Random(0).sample(list(edits), n)


def _means(scores: Sequence[EditScore]) -> dict[str, float]:
    current = [score for score in scores if not score.superseded]
    found = {}
    for name in ("efficacy", "generalization", "specificity_self"):
        values = [v for s in current if (v := getattr(s, name)) is not None]
        found[name] = sum(values) / len(values) if values else float("nan")
    return found


def _by_part(spent: Sequence[float], size: int) -> list[float]:
    """Seconds of an edit in each eighth of the stream."""
    ends = [round(i * len(spent) / POINTS) for i in range(POINTS + 1)]
    parts = [spent[a:b] for a, b in pairwise(ends) if b > a]
    return [sum(part) / len(part) / size for part in parts]
