"""Counts the tasks of a run and the seconds that the plan expects of them, for its display."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.plan.cell_keys import key_of
from pipeline.plan.estimate import CellEstimate, cell_estimates, placement_of
from pipeline.plan.schedule import Work, makespan
from pipeline.results.lake.records import CellRecord
from pipeline.run.durations import duration
from pipeline.run.tasks import Kind, Task

_TASKS: Mapping[Kind, str] = {
    "prepare": "model{s} to have ready",
    "ask": "model{s} to ask what it knows",
    "statistics": "part{s} of key covariance to sum",
    "calibrate": "step{s} to calibrate",
    "train": "network{s} to train",
    "edit": "cell{s} to edit and score",
}


def expected_of(
    tasks: Mapping[str, Task], records: Sequence[CellRecord], cache: str
) -> dict[str, float]:
    """Seconds of tasks, by key, as `rledit plan` reckons them; without those it does not reckon.

    Args:
        tasks: Of the cells to run.
        records: Finished cells of the lake.
        cache: URI of the cache: what lies there is not made again.
    """
    cells = [task.cell for task in tasks.values() if task.kind == "edit"]
    found = cell_estimates(cells, records, placement_of(cells, measured=True), cache)
    by_cell = {key_of(estimate.work.cell): estimate for estimate in found}
    seconds = {
        key: _seconds(task, by_cell[key_of(task.cell)])
        for key, task in tasks.items()
        if key_of(task.cell) in by_cell
    }
    return {key: value for key, value in seconds.items() if value > 0}


def _seconds(task: Task, estimate: CellEstimate) -> float:
    """A task's part of the estimate of the cell that is the first to need it."""
    if task.kind == "statistics":
        return estimate.statistics / task.cell.statistics.shards
    parts: dict[Kind, float] = {
        "prepare": estimate.model,
        "ask": estimate.asking,
        "train": estimate.seconds.training,
        "edit": estimate.own,
    }
    return parts.get(task.kind, 0.0)


def work_lines(
    tasks: Mapping[str, Task], expected: Mapping[str, float], slots: int, gpus: float = 0.0
) -> list[str]:
    """What a run is going to do, and how long it takes by the plan.

    Args:
        slots: Cores in use; `gpus`: GPUs.
    """
    counts = Counter(task.kind for task in tasks.values())
    parts = [
        f"{counts[kind]} {words.format(s='s' * (counts[kind] > 1))}"
        for kind, words in _TASKS.items()
        if counts[kind]
    ]
    work = {
        key: Work(seconds=expected.get(key, 0.0), demand=task.resources.demand(), needs=task.needs)
        for key, task in tasks.items()
    }
    seconds = makespan(work, {"CPU": float(slots), "GPU": gpus})
    where = f"{gpus:g} GPU{'s' * (gpus != 1)}" if gpus else f"{slots} core{'s' * (slots > 1)}"
    return [
        f"to do: {', '.join(parts)}; what the cache has is taken from it",
        f"estimated: about {duration(seconds)} on {where} by the plan, corrected as tasks end",
    ]
