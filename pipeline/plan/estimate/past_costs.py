"""Costs of a cell by the finished cells of the lake that are most like it, for estimates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.plan.cell_keys import identity_of
from pipeline.plan.cells import Cell
from pipeline.plan.estimate.seconds import Seconds
from pipeline.results.lake.records import CellRecord, scale_of
from rledit.editors import editor_class
from rledit.protocols import PROTOCOLS
from rledit.stream import checkpoints

# What two cells have in common for one's cost to stand for the other's: the closest first.
_LIKENESS: tuple[tuple[str, ...], ...] = (
    ("variant", "dataset", "batch_size", "n_batches"),
    ("variant", "dataset", "batch_size"),
    ("variant", "batch_size"),
    ("variant",),
    (),
)

_ALWAYS = ("scale", "model", "editor")

# Settings that say how much is computed: cells that differ in one are not of one cost.
_WORK = (
    "modules", "steps", "passes", "value_steps", "contexts", "rank", "depth", "window_share",
    "prompt_coef", "validate_every", "validation_batches",
)  # fmt: skip


class PastCosts:
    """What finished cells cost.

    Args:
        records: Cells of the lake, of any grid.
    """

    def __init__(self, records: Sequence[CellRecord]) -> None:
        # A cell that has its rows in another one's has that one's costs.
        own = [r for r in records if r.done and r.asked is None]
        self._records = [r for r in own if r.values.get("edit_ms") is not None]

    def seconds(self, cell: Cell) -> Seconds | None:
        """Time of a cell by those most like it; None where there is none."""
        alike = self.like(cell)
        if not alike:
            return None
        n_edits = cell.n_edits
        trained = _median(
            alike, lambda r: (r.values["train_seconds"] or 0.0) / _measured_training(r)
        )
        training = trained * _training_edits(cell) if cell.trains else 0.0
        return Seconds(
            setup=training,
            training=training,
            edit=_median(alike, lambda r: r.values["edit_ms"]) * n_edits / 1000,
            score=_median(alike, lambda r: _score_seconds(r, cell))
            * _over_points(
                cell, len(cell.scored_places) / n_edits, cell.points, cell.stream.batch_size
            ),
            measured=True,
        )

    def peak_gb(self, cell: Cell) -> float | None:
        """Peak memory of the cells most like it."""
        peaks = [r.values["peak_memory_gb"] for r in self.like(cell)]
        return max((peak for peak in peaks if peak is not None), default=None)

    def like(self, cell: Cell) -> list[CellRecord]:
        """The finished cells that have most in common with this one.

        A model's name is what a grid calls it: of checkpoints, those with the same content count.
        """
        own = {
            "scale": scale_of(cell.scale, cell.model.checkpoint),
            "model": cell.model.name,
            "editor": cell.editor_name,
            "variant": cell.editor.variant,
            "dataset": cell.dataset.name,
            "batch_size": cell.stream.batch_size,
            "n_batches": cell.stream.n_batches,
        }
        for names in _LIKENESS:
            wanted = (*_ALWAYS, *names)
            found = [
                r for r in self._records
                if all(getattr(r.address, n) == own[n] for n in wanted)
                and _same_weights(r, cell) and _same_work(r, cell)
                and _same_place(r, cell) and _same_scoring(r, cell)
            ]  # fmt: skip
            if found:
                return found
        return []


def _same_work(record: CellRecord, cell: Cell) -> bool:
    """Whether both compute the same for an edit and for a step of training, as far as is told."""
    own, other = identity_of(cell)["settings"], record.values["identity"].get("settings", {})
    return not other or all(own.get(name) == other.get(name) for name in _WORK)


def _same_place(record: CellRecord, cell: Cell) -> bool:
    """Whether both are given the same to run on, as far as is told."""
    resources = cell.resources
    own = {
        "threads": cell.threads,
        "gpus": resources.gpus,
        "ranks": resources.ranks,
        "sharding": resources.sharding,
        "offload": resources.offload,
    }
    other = record.values["resolved"].get("execution", {})
    other = {name: record.values.get(name) for name in ("threads", "ranks")} | other
    return all(other.get(name) in (None, value) for name, value in own.items())


def _same_scoring(record: CellRecord, cell: Cell) -> bool:
    """Whether both look at the same of an edit that is scored, and measure the same beside."""
    identity = record.values["identity"]
    measured = identity.get("measurements", {}).get("names", ())
    asked = identity.get("protocols", cell.protocols)
    return {*measured} == {*cell.measurements} and _asks(asked) == _asks(cell.protocols)


def _asks(protocols: Sequence[str]) -> frozenset[str]:
    """What protocols want beside the expected answer; one that is not known here wants nothing."""
    known = [PROTOCOLS[name].asks for name in protocols if name in PROTOCOLS]
    return frozenset(ask for asks in known for ask in asks)


def _same_weights(record: CellRecord, cell: Cell) -> bool:
    """Whether both edit one checkpoint in one type; a model of the world goes by its name."""
    if cell.model.checkpoint is None:
        return True
    own, other = identity_of(cell)["model"], record.values["identity"].get("model", {})
    return all(own.get(key) == other.get(key) for key in ("checkpoint", "dtype"))


def _median(records: Sequence[CellRecord], value: Callable[[CellRecord], float]) -> float:
    return statistics.median(value(record) for record in records)


def _score_seconds(record: CellRecord, cell: Cell) -> float:
    """Seconds of scoring for each edit that was scored, over all points."""
    address, identity = record.address, record.values["identity"]
    n_edits = record.values["n_edits"] or address.n_batches * address.batch_size
    share = min(1.0, (identity.get("scored_edits") or n_edits) / max(n_edits, 1))
    points = checkpoints(address.n_batches, identity.get("checkpoints", cell.checkpoints))
    points = tuple({*points, *identity.get("also_after", ())})
    scored = _over_points(cell, share, points, address.batch_size)
    return (record.values["score_seconds"] or 0.0) / max(scored, 1.0)


def _over_points(cell: Cell, share: float, points: Sequence[int], batch_size: int) -> float:
    """Edits that are scored, over all points: of the unedited model, which is read once, at one.

    Args:
        cell: Tells which editor it is.
        share: Of the stream's edits, those that are scored.
        points: Batches after which they are.
    """
    once = editor_class(cell.editor.editor).work_kind == "none"
    return share * batch_size * (max(points) if once else sum(points))


def _measured_training(record: CellRecord) -> float:
    """Edits that a finished cell trained on, as far as its results or its settings tell."""
    outcome = record.values["resolved"].get("training")
    if outcome is not None:
        return float(max(outcome["batches"] * record.address.batch_size, 1))
    settings: dict[str, Any] = record.values["identity"].get("settings", {})
    address = record.address
    return max(_drawn(settings, address.n_batches, address.batch_size), 1.0)


def _training_edits(cell: Cell) -> float:
    """Edits that a cell trains on, at most where its training may end early."""
    return _drawn(asdict(cell.settings), cell.stream.n_batches, cell.stream.batch_size)


def _drawn(settings: Mapping[str, Any], n_batches: int, batch_size: int) -> float:
    """Edits that a training draws by an editor's settings, for a stream."""
    steps = settings.get("train_steps", 1) * settings.get("trajectories_per_step", 1)
    if (longest := settings.get("sequence_cap")) is not None:  # of an editor that counts edits
        from rledit.editors.dafnet_training import edits_trained_on

        patience, first = settings["curriculum_patience"], settings.get("first_cap", 1)
        return float(edits_trained_on(steps, longest, patience, first))
    return float((settings.get("trajectory_batches") or n_batches) * batch_size * steps)
