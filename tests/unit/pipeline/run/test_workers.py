"""Which worker does what: models stay where they are, and what nobody needs is given back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.config.resources import ResourcesEntry
from pipeline.plan.cells import cells_of
from pipeline.run.fleet.queue import Queue
from pipeline.run.fleet.workers import (
    IDLE_SECONDS,
    LEAST_HIRED,
    TURN_SECONDS,
    Worker,
    Workers,
    WorkerShape,
)
from pipeline.run.tasks import Task, tasks_of

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
CPU = WorkerShape(1, 0.0, None)


class Hand:
    """A process that is nowhere."""

    def __init__(self, shape: WorkerShape) -> None:
        self.shape = shape
        self.arrival = object()
        self.dismissed = False

    def work(self, item: object) -> object:
        return item

    def dismiss(self) -> None:
        assert not self.dismissed
        self.dismissed = True


@dataclass
class Cluster:
    """Cores that workers come to, in the order they were asked for.

    Attributes:
        cores: How many there are.
        grows: Whether more may come.
        now: The time.
    """

    cores: int
    grows: bool = True
    now: float = 0.0

    def __post_init__(self) -> None:
        self.hands: list[Hand] = []
        room, clock = lambda s: self.cores // s.cpus, lambda: self.now
        self.workers = Workers(self._hire, room, self.grows, clock)

    def _hire(self, shape: WorkerShape) -> Hand:
        self.hands.append(Hand(shape))
        return self.hands[-1]

    def settle(self) -> None:
        """Let those come for whom there is room."""
        coming = set(self.workers.arrivals)
        used = sum(h.shape.cpus for h in self.hands if not h.dismissed and h.arrival not in coming)
        for hand in self.hands:
            if hand.arrival in coming and used + hand.shape.cpus <= self.cores:
                used += hand.shape.cpus
                self.workers.arrived(hand.arrival)

    def assign(self, *tasks: Task, others_wait: bool = False) -> list[tuple[Task, Worker]]:
        return self.workers.assign(tasks, others_wait)


@dataclass(frozen=True, kw_only=True)
class Given(Task):
    """A task with resources of its own."""

    given: ResourcesEntry

    @property
    def resources(self) -> ResourcesEntry:
        return self.given


def task(key: str, model: str | None = None, **resources: object) -> Task:
    cell = None
    needs = (f"prepare:{model}",) if model else ()
    given = replace(ResourcesEntry(cpus=1), **resources)  # type: ignore[arg-type]
    return Given(kind="edit", key=key, cell=cell, needs=needs, threads=1, given=given)  # type: ignore[arg-type]


def staffed(cores: int, *held: str) -> tuple[Cluster, list[Worker]]:
    """Free workers, each with a model."""
    cluster = Cluster(cores)
    tasks = [task(f"first {i}", model) for i, model in enumerate(held)]
    cluster.assign(*tasks)
    cluster.settle()
    workers = [worker for _, worker in cluster.assign(*tasks)]
    for worker in workers:
        cluster.workers.back(worker, fit=True)
    return cluster, workers


def grid_of_two_models() -> dict[str, Task]:
    models = "models=[{name: a, world_model: tiny}, "
    models += "{name: b, world_model: tiny, overrides: {family: mistral}}]"
    editors = "editors=[{editor: none}, {editor: malmen, settings: {train_steps: 1}}]"
    return tasks_of(cells_of(load_grid(GRID, [models, editors, "seeds=[0, 1, 2, 3]"])))


def loads_of(tasks: dict[str, Task], begin: Callable[[Queue], list[tuple[Task, Worker]]]) -> int:
    """How often a model is loaded, if tasks end in the order they have begun."""
    queue, loads = Queue(tasks, 0), 0
    has: dict[int, str | None] = {}
    running: list[tuple[Task, Worker]] = []
    while queue:
        for one, worker in begin(queue):
            queue.take(one)
            loads += one.model not in (None, has.get(id(worker)))
            has[id(worker)] = one.model or has.get(id(worker))
            running.append((one, worker))
        if running:
            ended, worker = running.pop(0)
            worker.idle_since = 0.0
            list(queue.done(ended))
    return loads


def test_every_model_of_a_grid_is_loaded_about_once() -> None:
    """Two models, four seeds, an editor that is trained and one that is not, on two workers."""
    tasks = grid_of_two_models()
    assert len({t.model for t in tasks.values()} - {None}) == 2
    cluster = Cluster(2)

    def begin(queue: Queue) -> list[tuple[Task, Worker]]:
        cluster.settle()
        return cluster.assign(*queue.ready())

    def first_come(queue: Queue) -> list[tuple[Task, Worker]]:
        free = [worker for worker in pair if worker.idle_since is not None]
        chosen = list(zip(queue.ready(), free, strict=False))
        for _, worker in chosen:
            worker.idle_since = None
        return chosen

    pair = [Worker(CPU, Hand(CPU), arrived=0.0, idle_since=0.0) for _ in range(2)]
    assert loads_of(tasks, first_come) >= 8
    assert loads_of(tasks, begin) == 2


def test_a_free_worker_takes_a_task_of_its_model_before_earlier_ones() -> None:
    cluster, (worker,) = staffed(1, "a")
    later = task("later", "a")
    assert cluster.assign(task("b1", "b"), later, task("b2", "b")) == [(later, worker)]


def test_of_several_free_workers_the_one_that_has_the_model_is_taken() -> None:
    cluster, (_, second) = staffed(2, "a", "b")
    one = task("one", "b")
    assert cluster.assign(one) == [(one, second)]


def test_a_model_that_no_worker_has_goes_before_one_that_another_has() -> None:
    cluster, (first, _) = staffed(2, "a", "b")
    own, others, new = task("own", "b"), task("others", "b"), task("new", "c")
    begun = dict(reversed(pair) for pair in cluster.assign(own, others, new))  # type: ignore[misc]
    assert begun[first] is new  # type: ignore[index]
    assert first.model == new.model


def test_a_worker_helps_with_any_model_when_its_own_has_no_work() -> None:
    cluster, (first, second) = staffed(2, "a", "b")
    own, others = task("own", "b"), task("others", "b")
    assert set(cluster.assign(own, others)) == {(own, second), (others, first)}


def test_preparing_a_model_takes_none_from_its_worker() -> None:
    cluster, (worker,) = staffed(1, "a")
    prepare = task("prepare:b")
    assert cluster.assign(prepare, task("edit", "a")) == [(prepare, worker)]
    assert worker.model == "prepare:a"


def test_there_are_as_many_workers_on_their_way_as_tasks_wait_and_no_more() -> None:
    cluster = Cluster(1)
    tasks = [task(str(i), "a") for i in range(3)]
    assert cluster.assign(*tasks) == [] and len(cluster.workers.arrivals) == 3
    cluster.settle()
    assert len(cluster.assign(*tasks)) == 1 and len(cluster.workers.arrivals) == 2
    first, second, third = cluster.hands
    cluster.assign(tasks[1])
    assert (first.dismissed, second.dismissed, third.dismissed) == (False, False, True)
    cluster.assign()
    assert second.dismissed and not cluster.workers.arrivals


def test_a_cluster_sees_what_it_could_grow_for() -> None:
    tasks = [task(str(i), "a") for i in range(1000)]
    for cores, expected in ((1, LEAST_HIRED), (100, 100)):
        cluster = Cluster(cores)
        cluster.assign(*tasks)
        assert len(cluster.hands) == expected
    cluster.settle()
    cluster.assign(*tasks)
    assert len(cluster.workers.arrivals) == 100  # as many again as there are


def test_a_ray_that_cannot_grow_is_asked_for_none_that_it_has_no_room_for() -> None:
    cluster = Cluster(2, grows=False)
    tasks = [task(f"t{i}") for i in range(9)]
    cluster.assign(*tasks)
    assert len(cluster.workers.arrivals) == 2
    cluster.settle()
    begun = cluster.assign(*tasks)
    assert len(begun) == 2 and not cluster.workers.arrivals
    wide = task("wide", cpus=2)
    cluster.assign(wide)
    assert len(cluster.workers.arrivals) == 1  # it has its turn when those here are free
    for _, worker in begun:
        cluster.workers.back(worker, fit=True)
    cluster.assign(wide)
    cluster.settle()
    assert [t.key for t, _ in cluster.assign(wide)] == ["wide"]


def test_what_an_idle_worker_holds_goes_to_those_that_wait_for_it() -> None:
    """A task of another shape, a gang; and with nobody waiting, it stays for a while."""
    cluster, _ = staffed(1, "a")
    assert cluster.assign() == [] and not cluster.hands[0].dismissed
    cluster.assign(task("large", "a", gpus=1.0), task("larger", "a", gpus=2.0))
    assert cluster.hands[0].dismissed
    assert [h.shape.gpus for h in cluster.hands[1:]] == [1.0, 2.0]
    cluster, _ = staffed(1, "a")
    cluster.assign(others_wait=True)
    assert cluster.hands[0].dismissed
    cluster, _ = staffed(1, "a")
    cluster.now += IDLE_SECONDS + 1
    cluster.assign()
    assert cluster.hands[0].dismissed


def test_a_worker_makes_room_after_its_turn_where_others_wait() -> None:
    cluster, (worker,) = staffed(1, "a")
    cluster.now += TURN_SECONDS + 1
    more = task("more", "a")
    assert cluster.assign(more) == [(more, worker)]  # nobody waits
    cluster.workers.back(worker, fit=True)
    assert cluster.assign(task("again", "a"), others_wait=True) == []
    assert cluster.hands[0].dismissed and len(cluster.workers.arrivals) == 1


def test_the_only_task_may_need_less_than_its_worker_holds() -> None:
    """It begins at once, and in a process that has all imports."""
    cluster, (worker,) = staffed(1, "a")
    worker.shape = WorkerShape(2, 0.0, None)
    small, smaller = task("small", "a"), task("smaller", "a")
    assert cluster.assign(small, smaller) == [] and cluster.hands[0].dismissed
    cluster, (worker,) = staffed(1, "a")
    worker.shape = WorkerShape(2, 0.0, None)
    assert cluster.assign(small) == [(small, worker)]
    assert not cluster.workers.arrivals


def test_a_worker_that_is_not_fit_is_replaced() -> None:
    cluster, (worker,) = staffed(1, "a")
    one = task("one", "a")
    cluster.assign(one)
    cluster.workers.back(worker, fit=False)
    assert cluster.hands[0].dismissed
    assert cluster.assign(one) == [] and len(cluster.workers.arrivals) == 1


def test_one_that_will_not_come_says_what_it_would_have_been() -> None:
    cluster = Cluster(0)
    cluster.assign(task("one", "a", memory_gb=2.0))
    (arrival,) = cluster.workers.arrivals
    assert cluster.workers.lost(arrival) == WorkerShape(1, 0.0, 2.0)
    assert cluster.hands[0].dismissed and not cluster.workers.arrivals


def test_in_the_end_all_go() -> None:
    cluster, _ = staffed(1, "a")
    cluster.assign(task("one", "a"), task("two", "a"))
    assert len(cluster.hands) > 1
    cluster.workers.close()
    assert all(hand.dismissed for hand in cluster.hands)
    assert Counter(cluster.workers.arrivals) == Counter()


@pytest.mark.parametrize("gpus", [0.5, 1.0])
def test_a_gpu_task_goes_to_a_worker_with_that_gpu(gpus: float) -> None:
    cluster, (worker,) = staffed(1, "a")
    worker.shape = WorkerShape(1, gpus, None)
    same, other = task("same", "a", gpus=gpus), task("other", "a")
    assert cluster.assign(other, same) == [(same, worker)]
