"""Time left: what workers say, what like tasks took, what the plan expects, who waits for whom."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.config.resources import ResourcesEntry
from pipeline.plan.cells import cells_of
from pipeline.run.expected import expected_of, work_lines
from pipeline.run.fleet.progress import Progress
from pipeline.run.pace import Pace, TimeLeft
from pipeline.run.reporting import Stage
from pipeline.run.tasks import Task, tasks_of

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
RLEDIT = "{editor: rledit, settings: {initial_step: 1.0e-3}}"
NOW = 1_000_000.0


def made(*editors: str) -> dict[str, Task]:
    return tasks_of(cells_of(load_grid(GRID, [f"editors=[{', '.join(editors)}]"])))


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    """One model, and three cells of twelve edits."""
    return made("{editor: none}", "{editor: ultraedit, settings: {step: 1.0e-3}}", "{editor: ft}")


def at(done: int, total: int, ago: float, stage: Stage = "edit", now: float = NOW) -> Progress:
    return Progress(done=done, total=total, started=now - ago, stage=stage, pid=1)


def test_the_estimate(tasks: dict[str, Task]) -> None:
    _, none, ultra, ft = tasks
    time_left = TimeLeft(tasks, slots=2)
    assert time_left.seconds_left({ultra}, {}, NOW) is None
    time_left.add(tasks[none], 10.0)
    # What is not known of an editor is taken from the others; two run at a time.
    assert time_left.seconds_left({ultra, ft}, {}, NOW) == pytest.approx(10.0)
    # A running cell promises its own length, however many cores there are: a quarter in 5 s.
    assert time_left.seconds_left({ultra}, {ultra: at(1, 4, 5.0)}, NOW) == pytest.approx(15.0)


def test_time_left_follows_a_cluster_that_grows(tasks: dict[str, Task]) -> None:
    _, none, ultra, ft = tasks
    gpu = {
        key: replace(t, cell=replace(t.cell, resources=ResourcesEntry(gpus=1.0)))
        for key, t in tasks.items()
    }
    time_left = TimeLeft(gpu, 1, expected={none: 600.0, ultra: 600.0, ft: 600.0})
    assert time_left.seconds_left({none, ultra, ft}, {}, NOW) == pytest.approx(1800.0)
    time_left.take_room(8, 2.0)
    assert time_left.seconds_left({none, ultra, ft}, {}, NOW) == pytest.approx(1200.0)
    time_left.take_room(32, 8.0)
    assert time_left.seconds_left({none, ultra, ft}, {}, NOW) == pytest.approx(600.0)


def test_a_pace_begins_anew_with_a_stage() -> None:
    pace, now = Pace(), time.time()
    pace.look({"a": at(0, 10, 0.0, "train")}, now)
    pace.look({"a": at(5, 10, 0.0, "train")}, now + 10)
    assert pace.rate("a") == pytest.approx(0.5)
    assert pace.seconds_left("a", at(5, 10, 0.0, "train"), now + 12) == pytest.approx(8)
    pace.look({"a": at(0, 3, 0.0, "edit")}, now + 20)
    assert pace.rate("a") is None
    pace.look({"a": at(1, 3, 0.0, "score")}, now + 21)
    assert pace.rate("a") == pytest.approx(1.0)
    pace.look({}, now + 22)
    assert pace.rate("a") is None


def test_a_training_leaves_as_long_as_its_batches_and_validations_take() -> None:
    """Two cells that wait for one network, on four cores: the network is on the way of both."""
    tasks = made("{editor: none}", RLEDIT)
    none, edit = (key for key in tasks if key.startswith("edit:"))
    (train,) = (key for key in tasks if key.startswith("train:"))
    pace = Pace()
    time_left = TimeLeft(tasks, 4, pace, {train: 300.0, edit: 20.0, none: 10.0})
    unfinished = {none, train, edit}
    training = replace(at(30, 80, 470.0, "train"), left=1100.0)
    running = {train: training, none: at(0, 1, 1.0)}
    pace.look(running, NOW)
    left = time_left.seconds_left(unfinished, running, NOW)
    # The cell after it is expected to take what it should, times how much longer training takes.
    assert left == pytest.approx(1100 + 20 * (1570 / 300), rel=0.01)
    # A validation of four minutes reports nothing: the time runs on, by the worker's own word.
    pace.look(running, NOW + 240)
    later = time_left.seconds_left(unfinished, running, NOW + 240)
    assert later == pytest.approx(left - 240, abs=5)
    # Overdue, it is not done: what is silent takes a while yet.
    assert pace.seconds_left(train, training, NOW + 2000) == pytest.approx(200)


def test_a_plan_stands_in_until_something_is_measured(tasks: dict[str, Task]) -> None:
    model, none, ultra, ft = tasks
    expected = {model: 60.0, none: 10.0, ultra: 20.0, ft: 30.0}
    time_left = TimeLeft(tasks, 1, expected=expected)
    assert time_left.seconds_left(set(tasks), {}, NOW) == pytest.approx(120)
    assert not time_left.is_measured
    # A worker that says nothing yet is as far as the clock is, by the plan.
    begun = {model: at(0, 1, 25.0, "prepare")}
    assert time_left.seconds_left(set(tasks), begun, NOW) == pytest.approx(95)
    assert time_left.task_left(model, at(0, 1, 500.0, "prepare"), NOW) == pytest.approx(50)
    # The machine is half as fast as the plan takes it to be.
    time_left.add(tasks[model], 120.0)
    assert time_left.seconds_left({none, ultra, ft}, {}, NOW) == pytest.approx(120)
    assert time_left.is_measured
    # Of its own kind, a cell that has ended tells more than the model did.
    time_left.add(tasks[none], 10.0)
    assert time_left.seconds_left({ultra, ft}, {}, NOW) == pytest.approx(50)


def test_what_is_on_the_way_to_the_work_of_a_task_is_not_all_of_it(tasks: dict[str, Task]) -> None:
    _, none, *_ = tasks
    pace = Pace()
    time_left = TimeLeft(tasks, 1, pace, {none: 100.0})
    for done, moment in ((0, NOW), (50, NOW + 10)):
        pace.look({none: at(done, 60, 10.0, "prefixes")}, moment)
    seen = at(50, 60, 10.0, "prefixes", NOW + 10)
    assert pace.seconds_left(none, seen, NOW + 10) == pytest.approx(2)
    assert time_left.task_left(none, seen, NOW + 10) == pytest.approx(90)
    assert time_left.task_left(none, at(0, 1, 200.0, "commit"), NOW) == 0


def test_a_run_says_what_it_will_do_and_how_long_the_plan_takes_it_to_be(tmp_path: Path) -> None:
    tasks = made("{editor: none}", RLEDIT)
    expected = expected_of(tasks, [], str(tmp_path / "cache"))
    kinds = {tasks[key].kind for key in expected}
    assert kinds == {"prepare", "train", "edit"} and all(value > 0 for value in expected.values())
    what, long = work_lines(tasks, {key: 60.0 for key in tasks}, slots=2)
    assert what.startswith("to do: 1 model to have ready, 1 network to train, 2 cells to edit and ")
    assert long.startswith("estimated: about 3 min 00 s on 2 cores by the plan")
    assert "on 8 GPUs" in work_lines(tasks, expected, slots=2, gpus=8)[1]
