"""Runs tasks on a Ray cluster, or on a Ray of this machine."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import ray
from ray._private import node as ray_node
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import ConfigError
from pipeline.plan.cores import usable_cores
from pipeline.run import heap
from pipeline.run.fleet.attempts import (
    ActorHand,
    Outcome,
    TaskAttempt,
    WorkItem,
    begin,
    begin_on,
    outcome_of,
)
from pipeline.run.fleet.progress import Progress, ProgressActor
from pipeline.run.fleet.queue import Finished, Queue
from pipeline.run.fleet.stall_monitor import StallMonitor
from pipeline.run.fleet.workers import Workers, WorkerShape
from pipeline.run.signals import handler_kept
from pipeline.run.tasks import Task
from pipeline.storage.run_paths import RunPaths

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 << 20
WORKER_RETRIES = 3
START_ATTEMPTS = 3
POLL_SECONDS = 0.5
# Enough for a cluster to see what it could grow for; each costs memory on the driver's node.
MOST_SUBMITTED = 2000
_TOO_SLOW = "timed out during startup"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@contextmanager
def local_fleet(cpus: int | None = None) -> Iterator[int]:
    """A Ray on this machine's loopback, for the length of the context.

    Args:
        cpus: Cores to use; None: all that this process may use.

    Yields:
        The number of cores.
    """
    cores = cpus or usable_cores()
    _set_environment()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # it lives and dies with this process
    _stay_on_loopback()
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            _start(cores)
            break
        except Exception as error:
            # Ray has no class for it. It waits half a minute, too little on a very busy machine.
            if _TOO_SLOW not in str(error) or attempt == START_ATTEMPTS:
                raise
            logger.warning("Ray took too long to start on this machine; trying again")
    try:
        yield cores
    finally:
        ray.shutdown()


class _OwnNode(ray_node.Node):
    """A machine's Ray without what only a cluster, or who watches it, has a use for.

    Ray has no option that leaves these out, not even where there is no dashboard. Each is a process
    that imports Ray anew, which takes a second of CPU.
    """

    def start_api_server(self, **_: Any) -> None:
        """Nobody looks at a dashboard."""

    def start_monitor(self) -> None:
        """There are no nodes to start or end."""

    def start_log_monitor(self) -> None:
        """What workers print is not sent to the driver (`log_to_driver`)."""


@contextmanager
def _own_node() -> Iterator[None]:
    """Let `ray.init` start the processes of `_OwnNode` alone."""
    whole, ray_node.Node = ray_node.Node, _OwnNode
    try:
        yield
    finally:
        ray_node.Node = whole


def _start(cores: int) -> None:
    with handler_kept(block=False), _own_node():
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    heap.freeze()


@contextmanager
def remote_fleet(address: str) -> Iterator[int]:
    """A Ray cluster that is already there, for the length of the context.

    Args:
        address: ``host:port``, ``ray://host:port``, or ``auto`` for the cluster this process is
            part of.

    Yields:
        The number of cores it has now.
    """
    if address.removeprefix("ray://").rpartition(":")[0] in _LOOPBACK:
        _stay_on_loopback()
    _set_environment()
    with handler_kept(block=True):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    heap.freeze()
    try:
        yield room_of_fleet()[0]
    finally:
        ray.shutdown()


def _set_environment() -> None:
    """What Ray and the processes it starts read from the environment, unless the user says else.

    Nothing is reported home, and a task without a GPU keeps `CUDA_VISIBLE_DEVICES` as it finds it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _stay_on_loopback() -> None:
    """Make Ray keep a loopback address; else it puts the machine's outer address in its place.

    The setting is meant for systems on which every listening process asks the user, and is read
    when Ray is imported; the processes it starts read it from the environment.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def run_tasks(
    tasks: Mapping[str, Task],
    run_paths: RunPaths,
    on_progress: Callable[[Mapping[str, Progress]], None],
    grows: bool = True,
) -> Generator[Finished, None, None]:
    """Run tasks as their dependencies allow; yield each as it ends.

    A task whose worker dies is tried again, up to `WORKER_RETRIES` times; where several processes
    work together, the death of one ends them all. A task that raises is not tried again, and those
    that need it are not begun.

    Args:
        tasks: By key, dependencies before dependants.
        run_paths: Where results and caches lie.
        on_progress: Called about twice a second with the running tasks.
        grows: Whether the Ray that is up may get more nodes; a `local_fleet` does not.
    """
    workers = Workers(ActorHand, _room_for, grows)
    with _progress_actor() as progress_actor, closing(workers):
        fleet = _Fleet(Queue(tasks, WORKER_RETRIES), run_paths, progress_actor, workers)
        with closing(fleet):
            yield from fleet.run(on_progress)


class _Fleet:
    """Tasks under way, and what has become of them."""

    def __init__(
        self, queue: Queue, run_paths: RunPaths, progress_actor: Any, workers: Workers
    ) -> None:
        self._queue = queue
        self._run_paths = run_paths
        self._progress_actor = progress_actor
        self._workers = workers
        self._run = uuid.uuid4().hex
        self._watched: dict[Any, TaskAttempt] = {}
        self._stall_monitor = StallMonitor(ray.cluster_resources)

    def run(
        self, on_progress: Callable[[Mapping[str, Progress]], None]
    ) -> Generator[Finished, None, None]:
        """As `run_tasks`."""
        shown = 0.0
        untold: deque[Finished] = deque()
        self._start()
        while self._queue or untold:
            # Who is told may take his time (a tracking store): before, all workers have a task.
            ended = self._ended(0.0 if untold else POLL_SECONDS)
            if time.monotonic() - shown > POLL_SECONDS:
                running = _snapshot(self._progress_actor)
                on_progress(running)
                self._stall_monitor.check(bool(running), self._waiting())
                shown = time.monotonic()
            for reference in ended:
                untold += self._settled(reference)
            untold += self._given_up()
            self._start()
            if untold:
                yield untold.popleft()

    def close(self) -> None:
        """Give up what is under way."""
        for attempt in set(self._watched.values()):
            attempt.release()

    def _start(self) -> None:
        """Begin what can begin."""
        ready = self._queue.ready(MOST_SUBMITTED)
        gangs = {a.item.task.key for a in self._watched.values() if a.item.task.resources.gang}
        for task in [t for t in ready if t.resources.gang][: MOST_SUBMITTED - len(gangs)]:
            self._watch(begin(self._begun(task)))
            gangs.add(task.key)
        alone = [task for task in ready if not task.resources.gang]
        # Of a gang that has begun, all members have their room: no worker has to make any.
        wait = any(a.waits for a in self._watched.values())
        for task, worker in self._workers.assign(alone, others_wait=wait):
            self._watch(begin_on(self._begun(task), worker, self._workers))

    def _begun(self, task: Task) -> WorkItem:
        self._queue.take(task)
        return WorkItem(
            task=task,
            run_paths=self._run_paths,
            progress_actor=self._progress_actor,
            run=self._run,
            interruptions=self._queue.interruptions(task),
        )

    def _waiting(self) -> Iterator[Task]:
        yield from self._queue.ready(1)
        yield from (attempt.item.task for attempt in self._watched.values())

    def _watch(self, attempt: TaskAttempt) -> None:
        self._watched.update(dict.fromkeys(attempt.references, attempt))

    def _ended(self, seconds: float) -> list[Any]:
        """References that are there; waits a moment for the first one."""
        references = [*self._watched, *self._workers.arrivals]
        if not references:
            return []
        ended, rest = ray.wait(references, num_returns=1, timeout=seconds)
        if ended and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
            ended += more
        return ended

    def _settled(self, reference: Any) -> Iterator[Finished]:
        if reference in self._workers.arrivals:
            yield from self._arrived(reference)
            return
        attempt = self._watched.pop(reference, None)
        if attempt is None:
            return  # another of its references has ended the attempt
        outcome = attempt.ended(reference)
        if outcome is None:
            self._watch(attempt)
        else:
            yield from self._end(attempt, outcome)

    def _arrived(self, reference: Any) -> Iterator[Finished]:
        """A worker is there, or it will not come: that is the end of an attempt at a task."""
        outcome = outcome_of(reference)
        if outcome.reason is None:
            self._workers.arrived(reference)
            return
        shape = self._workers.lost(reference)
        ready = (
            t for t in self._queue.ready() if not t.resources.gang and WorkerShape.of(t) == shape
        )
        if (task := next(ready, None)) is not None:
            self._queue.take(task)
            yield from self._passed_on(task, outcome)

    def _given_up(self) -> Iterator[Finished]:
        for attempt in set(self._watched.values()):
            outcome = attempt.overdue()
            if outcome is not None:
                yield from self._end(attempt, outcome)

    def _end(self, attempt: TaskAttempt, outcome: Outcome) -> Iterator[Finished]:
        for reference in attempt.references:
            self._watched.pop(reference, None)
        attempt.release()
        # Its worker has said so too, if it came to it.
        self._progress_actor.remove.remote(attempt.item.task.key)
        yield from self._passed_on(attempt.item.task, outcome)

    def _passed_on(self, task: Task, outcome: Outcome) -> Iterator[Finished]:
        if outcome.reason is None:
            yield from self._queue.done(task, outcome.found)
        elif outcome.died:
            logger.warning("%s: %s", task.label, outcome.reason)
            yield from self._queue.died(task, outcome.reason)
        else:
            yield from self._queue.failed(task, outcome.reason)


def _room_for(shape: WorkerShape) -> int:
    """How many workers of a shape the cluster could hold, if it had nothing else to do."""
    has = ray.cluster_resources()
    return int(min(has.get(name, 0.0) / n for name, n in shape.demand().items() if n))


def require_room(tasks: Mapping[str, Task]) -> None:
    """Check that this Ray can hold every task; one that cannot grow would wait for ever.

    Raises:
        ConfigError: It has too few cores, GPUs or too little memory for one; says what to change.
    """
    has = ray.cluster_resources()
    for task in tasks.values():
        for name, amount in task.resources.demand().items():
            if amount > has.get(name, 0.0):
                raise ConfigError(
                    f"{task.label} needs {amount:g} {name}, and there are {has.get(name, 0.0):g} "
                    "here; lower the grid's resources or threads, raise --workers, or run on a "
                    "cluster with --address"
                )


def room_of_fleet() -> tuple[int, float]:
    """Cores, at least one, and GPUs that the Ray of this process has now; a cluster may grow."""
    has = ray.cluster_resources()
    return max(1, int(has.get("CPU", 1))), float(has.get("GPU", 0.0))


@contextmanager
def _progress_actor() -> Iterator[Any]:
    """The progress actor, on the node of the driver: other nodes may go."""
    # A soft affinity would put it anywhere: a head without cores is none that Ray likes to choose.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress_actor = (
        ray.remote(ProgressActor)
        .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1)
        .remote()
    )
    try:
        yield progress_actor
    finally:
        ray.kill(progress_actor)


def _snapshot(progress_actor: Any) -> dict[str, Progress]:
    try:
        found: dict[str, Progress] = ray.get(
            progress_actor.snapshot.remote(), timeout=10 * POLL_SECONDS
        )
    except RayError as error:
        # A display that stands still for a while is no reason to stop the work.
        logger.warning("no progress is known: %s", type(error).__name__)
        return {}
    return found
