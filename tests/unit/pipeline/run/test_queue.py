"""The order of tasks, what a death costs, and what a failure takes with it."""

from __future__ import annotations

from typing import Any

from pipeline.run.fleet.queue import Queue
from pipeline.run.tasks import Task


def task(key: str, *needs: str) -> Task:
    cell: Any = None
    kind: Any = key.partition(":")[0]
    return Named(kind=kind, key=key, cell=cell, needs=needs, threads=1)


class Named(Task):
    @property
    def label(self) -> str:
        return self.key


TASKS = {
    t.key: t
    for t in (
        task("prepare:m"),
        task("train:a", "prepare:m"),
        task("edit:a", "prepare:m", "train:a"),
        task("edit:b", "prepare:m"),
    )
}


def startable(queue: Queue) -> list[str]:
    found = queue.ready()
    for one in found:
        queue.take(one)
    return [one.key for one in found]


def test_tasks_start_when_what_they_need_is_done() -> None:
    queue = Queue(TASKS, retries=3)
    assert startable(queue) == ["prepare:m"]
    assert [f.reason for f in queue.done(TASKS["prepare:m"])] == [None]
    assert startable(queue) == ["train:a", "edit:b"]
    list(queue.done(TASKS["edit:b"]))
    assert queue and startable(queue) == []
    list(queue.done(TASKS["train:a"]))
    assert startable(queue) == ["edit:a"]
    list(queue.done(TASKS["edit:a"]))
    assert not queue


def test_interruptions_of_all_that_led_to_a_task_are_told() -> None:
    """Of a network that goes on from another one, whose worker died once."""
    tasks = TASKS | {
        t.key: t
        for t in (
            task("train:longer", "prepare:m", "train:a"),
            task("edit:longer", "prepare:m", "train:longer"),
        )
    }
    queue = Queue(tasks, retries=3)
    list(queue.died(tasks["prepare:m"], "killed"))
    list(queue.died(tasks["train:a"], "out of memory"))
    list(queue.died(tasks["edit:longer"], "lost"))
    told = queue.interruptions(tasks["edit:longer"])
    assert told == ("prepare:m: killed", "train:a: out of memory", "lost")


def test_a_failure_takes_what_needs_it_along_and_nothing_else() -> None:
    queue = Queue(TASKS, retries=3)
    startable(queue)
    list(queue.done(TASKS["prepare:m"]))
    assert startable(queue) == ["train:a", "edit:b"]
    ended = list(queue.failed(TASKS["train:a"], "ValueError: no"))
    assert [f.task.key for f in ended] == ["train:a", "edit:a"]
    assert ended[1].reason == "needs train:a, which failed: ValueError: no"
    list(queue.done(TASKS["edit:b"]))
    assert not queue


def test_a_chain_of_failures_names_its_beginning() -> None:
    queue = Queue(TASKS, retries=3)
    startable(queue)
    reasons = {f.task.key: f.reason for f in queue.failed(TASKS["prepare:m"], "OSError: full")}
    assert reasons.keys() == TASKS.keys() and not queue
    assert reasons["edit:a"] == "needs prepare:m, which failed: OSError: full"


def test_a_death_is_tried_again_up_to_the_limit_and_every_reason_is_kept() -> None:
    queue = Queue(TASKS, retries=2)
    (key,) = startable(queue)
    for number in (1, 2):
        assert list(queue.died(TASKS[key], f"crash {number}")) == []
        assert startable(queue) == [key]
    assert queue.interruptions(TASKS[key]) == ("crash 1", "crash 2")
    assert queue.interruptions(TASKS["edit:a"]) == ("prepare:m: crash 1", "prepare:m: crash 2")
    assert queue.interruptions(TASKS["train:a"]) == queue.interruptions(TASKS["edit:b"])
    ended = list(queue.died(TASKS[key], "crash 3"))
    assert ended[0].reason == "gave up after 3 attempts: crash 1; crash 2; crash 3"
    assert len(ended) == 4 and not queue


def test_a_task_out_of_line_leaves_the_others_in_their_order() -> None:
    queue = Queue({k: task(k) for k in ("edit:a", "edit:b", "edit:c")}, retries=1)
    assert [t.key for t in queue.ready(2)] == ["edit:a", "edit:b"]
    queue.take(TASKS["edit:b"])
    list(queue.died(TASKS["edit:b"], "crash"))
    assert [t.key for t in queue.ready()] == ["edit:b", "edit:a", "edit:c"]
