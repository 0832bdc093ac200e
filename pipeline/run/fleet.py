"""Work on a Ray cluster, or on a Ray of this machine: the only file that knows Ray."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Nothing is reported home, and a Ray that lives and dies with this process needs no tokens.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.locations import Locations
from pipeline.run.report import Stage
from pipeline.run.tasks import Task, perform

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 << 20
WORKER_RETRIES = 3
POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a running task is."""

    done: int
    total: int
    started: float


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A task ended: with an output, or with the reason why it has none."""

    task: Task
    output: str | None
    reason: str | None


@contextmanager
def local_fleet(cpus: int | None = None) -> Iterator[int]:
    """A Ray on this machine's loopback, for the length of the context.

    Args:
        cpus: Cores to use; None: all of them.

    Yields:
        The number of cores.
    """
    cores = cpus or os.cpu_count() or 1
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(
        address="local",
        num_cpus=cores,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )
    try:
        yield cores
    finally:
        ray.shutdown()


def run_tasks(
    tasks: Mapping[str, Task],
    locations: Locations,
    on_progress: Callable[[Mapping[str, Progress]], None],
) -> Iterator[Finished]:
    """Run tasks as their dependencies allow; yield each as it ends.

    A worker that dies is replaced and its task tried again, up to `WORKER_RETRIES` times; a task
    that raises is not, and neither are those that need its output.

    Args:
        tasks: By key, dependencies before dependants.
        locations: Where results and caches lie.
        on_progress: Called about twice a second with the running tasks.
    """
    board = _Board.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    references: dict[str, Any] = {}
    for key, task in tasks.items():
        remote = _perform.options(
            num_cpus=task.threads, max_retries=WORKER_RETRIES, name=task.label
        )
        inputs = [references[need] for need in task.needs]
        references[key] = remote.remote(task, locations, board, *inputs)
    pending = {reference: tasks[key] for key, reference in references.items()}
    try:
        while pending:
            ended, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_SECONDS)
            on_progress(ray.get(board.snapshot.remote()))
            for reference in ended:
                yield _outcome(reference, pending.pop(reference))
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        ray.kill(board)


def _outcome(reference: Any, task: Task) -> Finished:
    try:
        return Finished(task=task, output=ray.get(reference), reason=None)
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        logger.error("%s failed:\n%s", task.label, error)
        return Finished(task=task, output=None, reason=f"{type(cause).__name__}: {cause}")
    except RayError as error:
        return Finished(task=task, output=None, reason=f"{type(error).__name__}: {error}")


@ray.remote
class _Board:
    """Where workers write how far they are, and the driver reads it."""

    def __init__(self) -> None:
        self._running: dict[str, Progress] = {}

    def update(self, key: str, done: int, total: int) -> None:
        old = self._running.get(key)
        started = old.started if old else time.time()
        self._running[key] = Progress(done=done, total=total, started=started)

    def remove(self, key: str) -> None:
        self._running.pop(key, None)

    def snapshot(self) -> dict[str, Progress]:
        return dict(self._running)


@ray.remote
def _perform(task: Task, locations: Locations, board: Any, *outputs: str) -> str:
    last = 0.0

    def report(stage: Stage, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > POLL_SECONDS / 2 or done == total:
            last = now
            board.update.remote(task.key, done, total)

    board.update.remote(task.key, 0, 1)
    try:
        return perform(task, outputs, locations, report)
    finally:
        board.remove.remote(task.key)
