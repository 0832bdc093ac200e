"""Task attempts on Ray: one worker, or a gang of processes placed together."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.config.resources import ResourcesEntry
from pipeline.run.device import hide_gpus
from pipeline.run.fleet.progress import Progress
from pipeline.run.fleet.workers import Worker, Workers, WorkerShape
from pipeline.run.lease import LeaseLost
from pipeline.run.rank_group import SINGLE_PROCESS, Gang
from pipeline.run.reporting import Report, Stage, watched
from pipeline.run.tasks import FOUND, Task, perform, prepare_node
from pipeline.storage.redaction import redact
from pipeline.storage.run_paths import RunPaths
from rledit.errors import UserError

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.25
MEETING_SECONDS = 120.0
# How long the other ranks have to show whether the first error was only a consequence.
# A survivor's connection breaks at once; that a node is gone, Ray says a quarter of a minute later.
GRACE_SECONDS = 60.0
# How gloo says that another rank has gone, in errors of no class of their own.
_GONE = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """What a worker is told.

    Attributes:
        task: The task.
        run_paths: Where results and caches lie.
        progress_actor: The actor that hears of progress.
        run: Invocation of the driver.
        interruptions: Why earlier attempts ended.
    """

    task: Task
    run_paths: RunPaths
    progress_actor: Any
    run: str
    interruptions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended: well (no reason), by an error, or because a process died.

    Attributes:
        found: There was nothing to do: the cache or the lake had it.
        of_peer: The error tells that another process was silent or has gone, and not why.
    """

    reason: str | None = None
    died: bool = False
    found: bool = False
    of_peer: bool = False


class TaskAttempt(Protocol):
    """An attempt under way.

    Attributes:
        item: What it is about.
        references: What Ray is to be watched for.
        waits: Whether it waits for room on the cluster.
    """

    item: WorkItem
    references: list[Any]

    @property
    def waits(self) -> bool: ...

    def ended(self, reference: Any) -> Outcome | None:
        """One of the references is there; returns how the attempt ended, once it has."""
        ...

    def overdue(self) -> Outcome | None:
        """How the attempt ended, if there is nothing left to wait for."""
        ...

    def release(self) -> None:
        """Free everything it holds."""
        ...


def begin(item: WorkItem) -> TaskAttempt:
    """Start an attempt of a gang."""
    return _Together(item)


def begin_on(item: WorkItem, worker: Worker, workers: Workers) -> TaskAttempt:
    """Start an attempt on one of some workers."""
    return _Single(item, worker, workers)


class _Single:
    """One task of a worker."""

    waits = False

    def __init__(self, item: WorkItem, worker: Worker, workers: Workers) -> None:
        self.item = item
        self._worker = worker
        self._workers = workers
        self.references = [worker.hand.work(item)]

    def ended(self, reference: Any) -> Outcome | None:
        self.references.remove(reference)
        outcome = outcome_of(reference)
        # An error on a GPU may leave it unusable for the process; a process that died is none.
        broken = outcome.died or bool(self.item.task.resources.gpus)
        self._workers.back(self._worker, fit=outcome.reason is None or not broken)
        return outcome

    def overdue(self) -> Outcome | None:
        return None

    def release(self) -> None:
        pass  # what it holds is the worker's


class _Together:
    """Processes of their own on a placement group: all of them or none."""

    def __init__(self, item: WorkItem) -> None:
        self.item = item
        self._resources = item.task.resources
        self._group: PlacementGroup = placement_group(
            [_bundle(self._resources)] * self._resources.ranks,
            strategy="PACK",
            name=item.task.label,
        )
        self._ranks: list[Any] = []
        self._outcomes: list[Outcome] = []
        self._first_error: float | None = None
        self.references = [self._group.ready()]

    @property
    def waits(self) -> bool:
        return not self._ranks

    def ended(self, reference: Any) -> Outcome | None:
        self.references.remove(reference)
        outcome = outcome_of(reference)
        if not self._ranks and outcome.reason is None:
            self._start()
            return None
        self._outcomes.append(outcome)
        if outcome.reason is not None and self._first_error is None:
            self._first_error = time.monotonic()
        certain = outcome.died and not outcome.of_peer
        return self._verdict() if not self.references or certain else None

    def overdue(self) -> Outcome | None:
        if self._first_error is None or time.monotonic() - self._first_error < GRACE_SECONDS:
            return None
        return self._verdict()

    def release(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        remove_placement_group(self._group)
        self.references = []

    def _start(self) -> None:
        name = f"{self.item.task.key}-{uuid.uuid4().hex[:8]}"
        for i in range(self._resources.ranks):
            place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=i)
            options = _options(self._resources)
            rank = _Rank.options(**options, scheduling_strategy=place).remote()  # type: ignore[attr-defined]
            self._ranks.append(rank)
            self.references.append(rank.work.remote(self.item, i, name))

    def _verdict(self) -> Outcome:
        """A death, or else an error of the work, explains those of the ranks that waited."""
        errors = [o for o in self._outcomes if o.reason is not None]
        if errors:
            return min(errors, key=lambda o: (o.of_peer, not o.died))
        return Outcome(found=all(o.found for o in self._outcomes))


def outcome_of(reference: Any) -> Outcome:
    """How what was asked of another process ended."""
    try:
        how = ray.get(reference)
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if not isinstance(cause, LeaseLost):
            # The reason is logged with the task's name; the trace helps where it may be a bug.
            level = logging.DEBUG if isinstance(cause, UserError) else logging.ERROR
            logger.log(level, "%s", redact(str(error)))
        reason = redact(f"{type(cause).__name__}: {cause}")
        return Outcome(reason=reason, died=_is_interruption(cause), of_peer=_is_of_a_peer(cause))
    except RayError as error:
        return Outcome(reason=f"{type(error).__name__}: {_first_line(error)}", died=True)
    return Outcome(found=how == FOUND)


def _is_interruption(cause: BaseException) -> bool:
    """Whether an error says nothing of the work: another process took it over, or was silent."""
    from torch.distributed import DistNetworkError, DistStoreError

    return isinstance(cause, LeaseLost | TimeoutError | DistNetworkError | DistStoreError)


def _is_of_a_peer(cause: BaseException) -> bool:
    """Whether an error says that another rank was silent or has gone: it may have had its own."""
    from torch.distributed import DistError

    if isinstance(cause, TimeoutError | DistError):
        return True
    return isinstance(cause, RuntimeError) and any(words in str(cause) for words in _GONE)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _bundle(resources: ResourcesEntry) -> dict[str, float]:
    bundle = {"CPU": float(resources.cpus or 1)}
    if resources.gpus:
        bundle["GPU"] = resources.gpus
    if resources.memory_gb:
        bundle["memory"] = resources.memory_gb * 1e9
    return bundle


def _options(resources: ResourcesEntry) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.memory_gb:
        options["memory"] = int(resources.memory_gb * 1e9)
    return options


def _alone(item: WorkItem) -> str:
    with _reported(item) as report:
        return perform(
            item.task, item.run_paths, report, SINGLE_PROCESS, item.run, item.interruptions
        )


class ActorHand:
    """A worker as a Ray actor, which holds its share of the cluster for as long as it lives."""

    def __init__(self, shape: WorkerShape) -> None:
        given = ResourcesEntry(cpus=shape.cpus, gpus=shape.gpus, memory_gb=shape.memory_gb)
        self._actor = _Worker.options(**_options(given)).remote(bool(shape.gpus))  # type: ignore[attr-defined]
        self.arrival: Any = self._actor.arrive.remote()

    def work(self, item: WorkItem) -> Any:
        """Begin a task."""
        return self._actor.work.options(name=item.task.label).remote(item)

    def dismiss(self) -> None:
        """End the process."""
        ray.kill(self._actor)


@ray.remote(max_restarts=0, max_task_retries=0)
class _Worker:
    """A process that does one task after another."""

    def __init__(self, has_gpu: bool) -> None:
        if not has_gpu:
            hide_gpus()

    def arrive(self) -> None:
        """Say that it is there."""

    def work(self, item: WorkItem) -> str:
        """Do a task."""
        return _alone(item)


@ray.remote(max_restarts=0, max_task_retries=0)
class _Rank:
    """One rank of a gang, in a process of its own: sharding changes torch for a whole process."""

    def work(self, item: WorkItem, rank: int, name: str) -> str:
        """Do the rank's part."""
        from pipeline.run.fleet.process_group import (
            find_rendezvous,
            joined,
            open_rendezvous,
            use_network_of,
            wait_for_all,
        )

        resources = item.task.resources
        if not resources.gpus:
            hide_gpus()
        host = ray.util.get_node_ip_address()
        use_network_of(host)
        if rank == 0:
            store, address = open_rendezvous(host)
            ray.get(item.progress_actor.set_rendezvous.remote(name, address))
        else:
            store = find_rendezvous(_rendezvous(item, name))
        with _reported(item, rank == 0) as report:
            # A node that has to fetch the model may take longer than a group waits for its ranks.
            prepare_node(item.task, item.run_paths, report)
            wait_for_all(store, rank, resources.ranks)
            with joined(rank, resources.ranks, store) as ranks:
                gang = Gang(together=ranks, sharding=resources.sharding, offload=resources.offload)
                return perform(
                    item.task, item.run_paths, report, gang, item.run, item.interruptions
                )


def _rendezvous(item: WorkItem, name: str) -> str:
    deadline = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < deadline:
        address: str | None = ray.get(item.progress_actor.rendezvous.remote(name))
        if address is not None:
            return address
        time.sleep(0.1)
    raise TimeoutError(f"{item.task.label}: rank 0 did not say where to meet")


@contextmanager
def _reported(item: WorkItem, is_rank_zero: bool = True) -> Iterator[Report]:
    """Where a worker's reports go: the leader's to the progress actor, the others' nowhere."""
    key = item.task.key
    started = time.time()
    shown, last, sent = "", 0.0, None

    def report(
        stage: Stage, done: int, total: int, detail: str = "", left: float | None = None
    ) -> None:
        nonlocal shown, last, sent
        now = time.monotonic()
        if is_rank_zero and (stage != shown or now - last > REPORT_SECONDS or done == total):
            if stage == shown and sent is not None and not ray.wait([sent], timeout=0)[0]:
                return  # with very many workers, the actor has not come to the last report yet
            shown, last = stage, now
            progress = Progress(
                done=done,
                total=total,
                started=started,
                stage=stage,
                pid=os.getpid(),
                detail=detail,
                left=left,
            )
            sent = item.progress_actor.update.remote(key, progress)

    report(item.task.kind, 0, 1)
    try:
        yield watched(report, key) if is_rank_zero else report
    finally:
        if is_rank_zero:
            item.progress_actor.remove.remote(key)
