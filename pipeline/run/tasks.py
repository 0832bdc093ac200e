"""The work of a grid as tasks with dependencies: prepare a model, ask it what it knows, calibrate a
step, train a network, run a cell."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config.gguf_refs import is_gguf_path
from pipeline.config.resources import ResourcesEntry
from pipeline.errors import ConfigError
from pipeline.inputs.content_hashes import fingerprint
from pipeline.inputs.corpus import REAL_FACTS
from pipeline.plan.cache_names import calibration_name, known_name, trained_name
from pipeline.plan.cell_data import calibration_edits
from pipeline.plan.cell_keys import (
    calibration_key_of,
    covariance_key_of,
    identity_of,
    key_of,
    known_key_of,
    train_key_of,
)
from pipeline.plan.cells import Cell
from pipeline.plan.checks import skip_reason
from pipeline.plan.imported import sums_corpus
from pipeline.plan.training_lengths import shorter_trainings
from pipeline.results.lake.lake import Lake
from pipeline.run import kept_model
from pipeline.run.cache import Cache
from pipeline.run.cell import record_skip, run_cell
from pipeline.run.lease import leased
from pipeline.run.rank_group import SINGLE_PROCESS, Gang
from pipeline.run.reporting import Report
from pipeline.run.stages.ask_known_facts import ask_model, with_known
from pipeline.run.stages.calibrate import calibrate_step
from pipeline.run.stages.covariance import collect
from pipeline.run.stages.prepare import has_model, prepare_model
from pipeline.run.stages.train import require_trained, train
from pipeline.storage.run_paths import RunPaths

Kind = Literal["prepare", "ask", "statistics", "calibrate", "train", "edit"]
FOUND = "found"  # how a task ended that was done before
_READS_EDITS = ("ask", "calibrate", "train", "edit")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One piece of work for one worker.

    Attributes:
        kind: What is done.
        key: Identity of the output: tasks of equal key are one task.
        cell: The cell it is done for; any cell that shares it will do.
        needs: Keys of the tasks that have to be done before.
        threads: CPU threads.
        shard: Part of the corpus, of a statistics task.
        longer: The cell whose training goes on where this one ends, see
            `pipeline.plan.training_lengths`; None: nobody's.
        setting: Its model and dataset in words, as far as the tasks it is one of have several.
    """

    kind: Kind
    key: str
    cell: Cell
    needs: tuple[str, ...]
    threads: int
    shard: int = 0
    longer: Cell | None = None
    setting: str = ""

    @property
    def resources(self) -> ResourcesEntry:
        """What the task is given to run on, its number of cores filled in."""
        given = self.cell.resources
        if self.kind == "prepare":
            return ResourcesEntry(cpus=self.threads, memory_gb=given.memory_gb)
        cpus = given.cpus or self.threads
        if self.kind == "statistics" and given.sharding == "none":
            # The corpus is shared out in shards already.
            return replace(given, ranks=1, cpus=cpus)
        return replace(given, cpus=cpus)

    @property
    def model(self) -> str | None:
        """Which model it opens: equal for tasks that can share a loaded one; None: it opens none.

        The same files and precision have the same key, and tasks of one worker the same device.
        """
        return next((key for key in self.needs if key.startswith("prepare:")), None)

    @property
    def label(self) -> str:
        """What a person calls it."""
        if self.kind == "prepare":
            return f"model {self.cell.model.name}"
        if self.kind == "ask":
            return f"known facts {self.cell.model.name} {self.cell.dataset.name}"
        if self.kind == "statistics":
            return f"statistics {self.cell.model.name} shard {self.shard}"
        if self.kind == "calibrate":
            name, size = self.cell.label, calibration_edits(self.cell)
            return f"calibrate {name} {self.cell.model.name} {self.cell.dataset.name} {size} edits"
        stream = f"{self.cell.stream.n_batches}x{self.cell.stream.batch_size}"
        return f"{self.kind} {self.cell.label} {stream} seed {self.cell.seed}{self.setting}"


def tasks_of(cells: Sequence[Cell]) -> dict[str, Task]:
    """Tasks of some cells by key, dependencies before dependants; shared work occurs once."""
    tasks: dict[str, Task] = {}
    located = [_located(cell) for cell in cells]
    trainings = _trainings([cell for cell in located if skip_reason(cell) is None])
    several = len({cell.model.name for cell in cells}), len({cell.dataset.name for cell in cells})
    for cell in located:
        own = zip((cell.model.name, cell.dataset.name), several, strict=True)
        setting = "".join(f" {name}" for name, count in own if count > 1)
        if skip_reason(cell) is not None:
            key = f"edit:{key_of(cell)}"
            tasks[key] = Task(
                kind="edit", key=key, cell=cell, needs=(), threads=cell.threads, setting=setting
            )
            continue
        model = f"prepare:{fingerprint(identity_of(cell)['model'])}"
        add = [
            Task(kind="prepare", key=model, cell=cell, needs=(), threads=cell.model_spec.threads)
        ]
        needs = [model]
        if cell.dataset.real_facts:
            known = f"ask:{known_key_of(cell)}"
            add.append(Task(kind="ask", key=known, cell=cell, needs=(model,), threads=cell.threads))
            needs.append(known)
        if cell.calibrates:
            step = f"calibrate:{calibration_key_of(cell)}"
            add.append(
                Task(
                    kind="calibrate", key=step, cell=cell, needs=tuple(needs), threads=cell.threads
                )
            )
            needs.append(step)
        if cell.trains:
            before: tuple[str, ...] = ()
            for trained, longer in trainings[train_key_of(cell)]:
                network = f"train:{train_key_of(trained)}"
                add.append(
                    Task(
                        kind="train",
                        key=network,
                        cell=trained,
                        needs=(*needs, *before),
                        threads=cell.threads,
                        longer=longer,
                        setting=setting,
                    )
                )
                before = (network,)
            needs += before
        if sums_corpus(cell):
            for shard in range(cell.statistics.shards):
                gradients = "output_gradients" in cell.needs
                side = {"output_gradients": True} if gradients else {}
                target_modules = fingerprint({"modules": cell.settings.modules, **side})
                moments = f"statistics:{covariance_key_of(cell)}:{target_modules}:{shard}"
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
                key=f"edit:{key_of(cell)}",
                cell=cell,
                needs=tuple(needs),
                threads=cell.threads,
                setting=setting,
            )
        )
        for task in add:
            tasks.setdefault(task.key, task)
    return tasks


def _trainings(cells: Sequence[Cell]) -> dict[str, list[tuple[Cell, Cell | None]]]:
    """By key of a training all those that come before it, and itself, each with the one after it.

    They need the same: model, known facts and calibrated step do not depend on a training's length.
    """
    shorter = {
        train_key_of(cell): before
        for cell, before in zip(cells, shorter_trainings(cells), strict=True)
        if cell.trains
    }
    longer = {train_key_of(c): key for key, c in shorter.items() if c is not None}
    first = {train_key_of(cell): cell for cell in reversed(cells) if cell.trains}
    found: dict[str, list[tuple[Cell, Cell | None]]] = {}
    for key, cell in first.items():
        found[key] = [(cell, first.get(longer.get(key, "")))]
        while (before := shorter[train_key_of(found[key][0][0])]) is not None:
            found[key].insert(0, (before, found[key][0][0]))
    return found


def _located(cell: Cell) -> Cell:
    """The cell with absolute paths: workers have folders of their own."""
    files = {
        pool: _absolute(given) if isinstance(given, str) else tuple(map(_absolute, given))
        for pool, given in cell.dataset.files.items()
    }
    checkpoint, corpus = cell.model.checkpoint, cell.statistics.corpus
    if checkpoint is not None and (Path(checkpoint).is_dir() or is_gguf_path(checkpoint)):
        checkpoint = _absolute(checkpoint)
    if corpus not in (None, REAL_FACTS):
        corpus = _absolute(corpus)
    given: dict[str, Any] = {
        name: getattr(cell.material, name) for name in ("text", "references", "ability")
    }
    material: dict[str, Any] = {name: path and _absolute(path) for name, path in given.items()}
    if (files, checkpoint, corpus, material) == (
        cell.dataset.files,
        cell.model.checkpoint,
        cell.statistics.corpus,
        given,
    ):
        return cell
    return replace(
        cell,
        dataset=replace(cell.dataset, files=files),
        model=replace(cell.model, checkpoint=checkpoint),
        statistics=replace(cell.statistics, corpus=corpus),
        material=replace(cell.material, **material),
    )


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())


def perform(
    task: Task,
    run_paths: RunPaths,
    report: Report,
    gang: Gang = SINGLE_PROCESS,
    run: str = "",
    interruptions: Sequence[str] = (),
) -> str:
    """Do a task in this process, alone or as one rank of a gang.

    What it needs is taken from the cache, where the tasks it needs have put it.

    Args:
        task: The task.
        run_paths: Where results and caches lie.
        report: Told how far the work is.
        gang: The ranks that do it.
        run: Invocation of the driver.
        interruptions: Why earlier attempts ended.

    Returns:
        How it ended: `done`, `skipped`, or `FOUND` where it was done before.

    Raises:
        ConfigError: The data are not those that the task was planned with.
    """
    cell, lake = task.cell, Lake(run_paths.lake)
    if (reason := skip_reason(cell)) is not None:
        return record_skip(cell, lake, reason)
    if task.kind in _READS_EDITS:
        _require_same_data(cell)
    cache = Cache(run_paths.cache)
    keeping = nullcontext() if task.resources.gang else kept_model.keeping()
    with leased(cache.storage, task.key, run, gang, report) as report, keeping:
        found = task.kind == "prepare" and has_model(cell, cache)
        model = prepare_model(cell, cache, report)
        if task.kind in ("calibrate", "train", "edit"):
            cell = with_known(cell, cache)
        found = found or _in_cache(task.kind, cell, cache)
        if task.kind == "ask":
            ask_model(cell, model, cache, report, gang)
        elif task.kind == "calibrate":
            calibrate_step(cell, model, cache, report, gang)
        elif task.kind == "train":
            longer = task.longer and with_known(task.longer, cache)
            train(cell, model, cache, report, gang, longer)
        elif task.kind == "statistics":
            found = not collect(cell, task.shard, model, cache, report, gang)
        elif task.kind == "edit":
            network = require_trained(cell, cache) if cell.trains else None
            return run_cell(cell, model, network, cache, lake, report, gang, interruptions)
    return FOUND if found else "done"


def prepare_node(task: Task, run_paths: RunPaths, report: Report) -> None:
    """Have a task's model on this node, as each rank of a gang does before they meet."""
    if skip_reason(task.cell) is None:
        prepare_model(task.cell, Cache(run_paths.cache), report)


def _require_same_data(cell: Cell) -> None:
    """The cell's key came with it, of the data that the driver has read; a worker reads anew."""
    planned, found = identity_of(cell)["dataset"]["data_hash"], cell.source().data_hash
    if found != planned:
        given = cell.dataset.files.values()
        files = [f for files in given for f in ([files] if isinstance(files, str) else files)]
        raise ConfigError(
            f"dataset {cell.dataset.name}: its edits have changed since this run was planned, or "
            f"are others on this node (hash {found[:12]}, planned {planned[:12]}; "
            f"{', '.join(files) or 'no files'}); leave the files as they are while a run goes on, "
            "and run it again"
        )


def _in_cache(kind: Kind, cell: Cell, cache: Cache) -> bool:
    """Whether what a task makes is there, so that it has nothing to do."""
    names = {"ask": known_name, "calibrate": calibration_name, "train": trained_name}
    return kind in names and cache.file(names[kind](cell)) is not None
