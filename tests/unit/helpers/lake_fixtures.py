"""Synthetic cells for tests of everything behind the lake; numbers are drawn, not measured."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from pipeline.results.lake.records import SCORES, CellAddress, CellResult

PROTOCOLS = ("token_accuracy", "exact_match")
# One row of the view `runs`, which tables are made of.
RUN_COLUMNS = (
    "grid", "cell", "editor", "variant", "model", "dataset", "scale", "seed", "batch_size",
    "n_batches", "n_edits", "final", "protocol", "prompt", *SCORES, "train_seconds", "edit_ms",
    "peak_memory_gb", "data_hash", "code_version", "status", "remark", "scored_edits",
    "stream_order",
)  # fmt: skip
LEVELS = {  # editor -> (efficacy, generalization, specificity, ms per edit, training seconds)
    "none": (15.0, 15.0, 100.0, None, None),
    "untrained": (37.0, 36.0, 70.0, 1.5, None),
    "ft": (72.0, 68.0, 52.0, 7.0, None),
    "ultraedit": (62.0, 61.0, 46.0, 1.5, None),
    "mend": (9.0, 9.0, 6.0, 2.7, 21.0),
    "malmen": (44.0, 42.0, 34.0, 1.6, 33.0),
    "rledit": (61.0, 59.0, 44.0, 1.7, 52.0),
}


def address(**changes: Any) -> CellAddress:
    """A cell's address; its key follows from the rest unless given."""
    values: dict[str, Any] = {
        "grid": "demo",
        "editor": "rledit",
        "variant": "",
        "model": "tiny-llama",
        "dataset": "world",
        "scale": "world",
        "seed": 0,
        "batch_size": 10,
        "n_batches": 4,
    } | changes
    default = "-".join(
        str(values[name]) for name in ("editor", "variant", "n_batches", "batch_size", "seed")
    )
    values.setdefault("cell_key", f"{values['grid']}-{default}".replace("--", "-"))
    return CellAddress(**values)


def cell(
    *, protocols: Sequence[str] = PROTOCOLS, checkpoints: int = 2, noise: int = 0, **changes: Any
) -> CellResult:
    """A finished cell with edits, scores and curves that hang together."""
    where = address(**changes)
    rng = np.random.default_rng([noise, where.seed, sum(map(ord, where.editor)), where.n_batches])
    n_edits = where.batch_size * where.n_batches
    edits: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    points = [n_edits * (i + 1) // checkpoints for i in range(checkpoints)]
    for checkpoint in points:
        for protocol in protocols:
            rows = _edit_rows(where, rng, checkpoint, protocol)
            edits += rows
            live = [row for row in rows if not row["superseded"]]
            scores.append(
                {
                    "checkpoint": checkpoint,
                    "n_edits": checkpoint,
                    "final": checkpoint == n_edits,
                    "protocol": protocol,
                    "n_scored": len(live),
                    "n_superseded": len(rows) - len(live),
                }
                | {
                    name: float(np.mean([row[name] for row in live]))
                    for name in ("efficacy", "generalization", "specificity", "specificity_self")
                }
            )
    level = LEVELS[where.editor]
    started = datetime(2026, 1, 2, 3, 4, 5)
    return CellResult(
        address=where,
        identity={"editor": {"name": where.editor, "rank": 128}, "seed": where.seed, "threads": 1},
        data_hash="d" * 12,
        model_hash="m" * 12,
        code_version="0.1.0+abc1234",
        versions={"torch": "2.13.0", "python": "3.11"},
        resolved={"editor": {"name": where.editor, "lr": 1e-3, "token": "all"}, "workers": 2},
        protocols=tuple(protocols),
        edits=edits,
        scores=scores,
        steps=_step_rows(where, rng),
        train_seconds=level[4],
        edit_seconds=None if level[3] is None else level[3] * n_edits / 1000,
        edit_ms=None if level[3] is None else level[3] + 0.01 * where.seed,
        score_seconds=0.5,
        peak_memory_gb=0.75,
        n_edits=n_edits,
        n_contradicting=1,
        started_at=started,
        finished_at=started + timedelta(seconds=60),
    )


def _edit_rows(
    where: CellAddress, rng: np.random.Generator, checkpoint: int, protocol: str
) -> list[dict[str, Any]]:
    efficacy, generalization, specificity, *_ = LEVELS[where.editor]
    lower = 0.9 if protocol == "exact_match" else 1.0
    rows = []
    for index in range(checkpoint):
        # Old edits fade: two thirds of the score is left at the start of a full stream.
        age = 1 - (checkpoint - 1 - index) / (3 * max(checkpoint, 1))
        draw = (
            rng.random(4) * 100
            < np.array([efficacy * age, generalization * age, specificity, specificity])
            * lower
            * 1.1
        )
        rows.append(
            {
                "checkpoint": checkpoint,
                "protocol": protocol,
                "edit_index": index,
                "batch_index": index // where.batch_size,
                "edit_id": f"fact-{index:04d}",
                "superseded": index == 1,
            }
            | {
                name: 100.0 * float(hit)
                for name, hit in zip(
                    ("efficacy", "generalization", "specificity", "specificity_self"),
                    draw,
                    strict=True,
                )
            }
        )
    return rows


def _step_rows(where: CellAddress, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if where.editor == "none":
        return rows
    for batch in range(1, where.n_batches + 1):
        step = batch * where.batch_size
        norm = 0.4 + 0.1 * rng.random()
        for metric, value in (
            ("shift_norm", norm),
            ("weight_norm", 20 + 0.05 * batch),
            ("realised_cosine", 0.8 - 0.01 * batch + 0.02 * rng.random()),
            ("edit_seconds", 0.015 + 0.002 * rng.random()),
        ):
            rows.append({"step": step, "metric": metric, "value": float(value)})
    if LEVELS[where.editor][4] is not None:
        rows += [
            {"step": i, "metric": "train_loss", "value": 3.0 / (1 + i / 10)} for i in range(60)
        ]
    return rows


def demo_cells(
    *, seeds: int = 3, streams: Sequence[int] = (4, 8), **changes: Any
) -> list[CellResult]:
    """Every editor on every stream and seed."""
    return [
        cell(editor=editor, seed=seed, n_batches=n_batches, **changes)
        for editor in LEVELS
        for n_batches in streams
        for seed in range(seeds)
    ]
