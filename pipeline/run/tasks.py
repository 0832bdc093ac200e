"""The work of a grid as tasks with dependencies: prepare a model, train a network, run a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.cells import Cell, digest
from pipeline.locations import Locations
from pipeline.results.lake import Lake
from pipeline.run.cell import run_cell
from pipeline.run.report import Report
from pipeline.run.stages.prepare import prepare_model
from pipeline.run.stages.statistics import collect
from pipeline.run.stages.train import train, trained_path

Kind = Literal["prepare", "statistics", "train", "edit"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One piece of work for one worker.

    Attributes:
        kind: What is done.
        key: Identity of the output: tasks of equal key are one task.
        cell: The cell it is done for; any cell that shares it will do.
        needs: Keys of the tasks whose outputs it takes.
        threads: CPU threads.
        shard: Part of the corpus, of a statistics task.
    """

    kind: Kind
    key: str
    cell: Cell
    needs: tuple[str, ...]
    threads: int
    shard: int = 0

    @property
    def label(self) -> str:
        """What a person calls it."""
        if self.kind == "prepare":
            return f"model {self.cell.model.name}"
        if self.kind == "statistics":
            return f"statistics {self.cell.model.name} shard {self.shard}"
        stream = f"{self.cell.stream.n_batches}x{self.cell.stream.batch_size}"
        return f"{self.kind} {self.cell.label} {stream} seed {self.cell.seed}"


def tasks_of(cells: Sequence[Cell]) -> dict[str, Task]:
    """Tasks of some cells by key, dependencies before dependants; shared work occurs once."""
    tasks: dict[str, Task] = {}
    for cell in cells:
        model = f"prepare:{digest(cell.identity['model'])}"
        add = [
            Task(kind="prepare", key=model, cell=cell, needs=(), threads=cell.model_spec.threads)
        ]
        needs = [model]
        if cell.trains:
            network = f"train:{cell.train_key}"
            add.append(
                Task(kind="train", key=network, cell=cell, needs=(model,), threads=cell.threads)
            )
            needs.append(network)
        if "statistics" in cell.needs:
            for shard in range(cell.statistics.shards):
                moments = f"statistics:{cell.statistics_key}:{shard}"
                add.append(
                    Task(
                        kind="statistics",
                        key=moments,
                        cell=cell,
                        needs=(model,),
                        threads=cell.threads,
                        shard=shard,
                    )
                )
                needs.append(moments)
        add.append(
            Task(
                kind="edit",
                key=f"edit:{cell.key}",
                cell=cell,
                needs=tuple(needs),
                threads=cell.threads,
            )
        )
        for task in add:
            tasks.setdefault(task.key, task)
    return tasks


def perform(task: Task, outputs: Sequence[str], locations: Locations, report: Report) -> str:
    """Do a task in this process.

    Args:
        task: The task.
        outputs: What the tasks it needs returned: the model's folder, and the network's file.
        locations: Where results and caches lie.
        report: Told how far the work is.

    Returns:
        The output: a folder, a file, or the cell's status.
    """
    cache = Path(locations.cache)
    if task.kind == "prepare":
        return str(prepare_model(task.cell, cache, report))
    model = Path(outputs[0])
    if task.kind == "train":
        return str(train(task.cell, model, cache, report))
    if task.kind == "statistics":
        return str(collect(task.cell, task.shard, model, cache, report))
    network = trained_path(task.cell, cache) if task.cell.trains else None
    return run_cell(task.cell, model, network, cache, Lake(locations.lake), report)
