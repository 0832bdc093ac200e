"""Display of a run: cells done, running and failed, edits per second, time left."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config.parse import load_grid
from pipeline.plan.cells import cells_of
from pipeline.run import display as module
from pipeline.run.display import Display, Estimate, Pace
from pipeline.run.fleet.progress import Progress
from pipeline.run.fleet.queue import Finished
from pipeline.run.reporting import Stage
from pipeline.run.tasks import Task, tasks_of

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    """One model, and three cells of twelve edits."""
    own = "{editor: ultraedit, settings: {step: 1.0e-3}}"
    editors = f"editors=[{{editor: none}}, {own}, {{editor: ft}}]"
    return tasks_of(cells_of(load_grid(GRID, [editors])))


def at(done: int, total: int, ago: float, stage: Stage = "edit") -> Progress:
    started = time.time() - ago
    return Progress(done=done, total=total, started=started, stage=stage, pid=1, node="n")


def test_the_headline_counts(
    tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOG_EVERY_SECONDS", -1.0)
    caplog.set_level(logging.INFO)
    model, none, ultra, ft = tasks
    with Display(tasks, 1, Console(quiet=True, force_terminal=False)) as shown:
        shown.finished(Finished(task=tasks[model], reason=None))
        shown.progress({none: at(3, 3, 10.0)})
        shown.finished(Finished(task=tasks[none], reason=None))
        shown.finished(Finished(task=tasks[ft], reason="ValueError: no"))
        shown._began -= 10
        shown.progress({ultra: at(1, 3, 10.0), none: at(3, 3, 10.0)})
    assert "ft 3x4 seed 0: ValueError: no" in caplog.text
    line = caplog.messages[-1]
    assert line.startswith("1 of 3 cells done, 1 tasks running, 1 failed, ")
    assert ", 1.6 edits/s, 10 s so far, about " in line  # twelve and four in ten seconds
    assert shown.counts() == {"cells": 3, "cells_ended": 2, "tasks_failed": 1}


def test_the_estimate(tasks: dict[str, Task]) -> None:
    _, none, ultra, ft = tasks
    estimate = Estimate(tasks, slots=2)
    now = time.time()
    assert estimate.seconds_left({ultra}, {}, now) is None
    estimate.add(tasks[none], 10.0)
    # What is not known of an editor is taken from the others.
    assert estimate.seconds_left({ultra, ft}, {}, now) == pytest.approx(10.0)
    # A running cell promises its own length: a quarter in 5 s.
    left = estimate.seconds_left({ultra}, {ultra: at(1, 4, 5.0)}, now)
    assert left == pytest.approx(15.0 / 2, abs=0.1)


def test_a_training_shows_its_batches_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOG_EVERY_SECONDS", -1.0)
    caplog.set_level(logging.INFO)
    editors = "editors=[{editor: rledit, settings: {initial_step: 1.0e-3}}]"
    tasks = tasks_of(cells_of(load_grid(GRID, [editors])))
    train = next(key for key in tasks if key.startswith("train:"))
    clock = time.time()
    monkeypatch.setattr(time, "time", lambda: clock)
    with Display(tasks, 1, Console(quiet=True, force_terminal=False)) as shown:
        shown.progress({train: at(20, 60, 30.0, "train")})
        # What an earlier attempt has done is no sign of speed.
        assert "training batch 20 of 60, 0 s so far, estimating" in caplog.messages[-1]
        clock += 5
        shown.progress({train: at(30, 60, 35.0, "train")})
        assert "training batch 30 of 60 at 2 batches/s, 5 s so far, about" in caplog.messages[-1]
        assert "edits/s" not in caplog.messages[-1]
        picture = shown._position(train, at(30, 60, 35.0, "train"))
        assert picture == "30/60 batches at 2 batches/s, 15 s left"
        detail = "trajectory 10 of at most 20, validation 71.0 (best 72.5 at 8), patience 4 of 5"
        early = replace(at(30, 60, 35.0, "train"), detail=detail)
        assert shown._position(train, early) == (
            f"30/60 batches at 2 batches/s, at most 15 s left, {detail}"
        )
        shown.progress({train: early})
        assert (
            f"training batch 30 of 60 at 2 batches/s, {detail}, 5 s so far" in (caplog.messages[-1])
        )


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


def test_what_is_done_before_the_first_edit_is_named(
    tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Minutes of calibration or summing are no "0 edits/s"."""
    monkeypatch.setattr(module, "LOG_EVERY_SECONDS", -1.0)
    caplog.set_level(logging.INFO)
    _, none, ultra, _ = tasks
    with Display(tasks, 1, Console(quiet=True, force_terminal=False)) as shown:
        shown.progress({none: at(0, 1, 5.0, "calibrate"), ultra: at(3, 8, 5.0, "statistics")})
    line = caplog.messages[-1]
    assert "summing key covariance 3 of 8, calibrating steps, " in line
    assert "edits/s" not in line
