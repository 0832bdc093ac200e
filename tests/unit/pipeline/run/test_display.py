"""Display of a run: cells done, running and failed, edits per second, time left."""

from __future__ import annotations

import io
import logging
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline.config.parse import load_grid
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import cells_of
from pipeline.run import display as module
from pipeline.run.display import Display
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
    return Progress(done=done, total=total, started=started, stage=stage, pid=1)


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
        assert picture == "30/60 batches at 2/s, 15 s left"
        detail = "trajectory 10 of at most 20, validation 71.0 (best 72.5 at 8), patience 4 of 5"
        early = replace(at(30, 60, 35.0, "train"), detail=detail)
        assert shown._position(train, early) == "30/60 batches at 2/s, at most 15 s left"
        shown.progress({train: early})
        assert (
            f"training batch 30 of 60 at 2 batches/s, {detail}, 5 s so far" in (caplog.messages[-1])
        )


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


def test_prompts_that_are_run_ahead_have_a_rate(
    tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Cells that share them count them once."""
    monkeypatch.setattr(module, "LOG_EVERY_SECONDS", -1.0)
    caplog.set_level(logging.INFO)
    _, none, ultra, _ = tasks
    clock = time.time()
    monkeypatch.setattr(time, "time", lambda: clock)
    layers = {none: 1, ultra: 1}
    monkeypatch.setattr(
        module, "store_choice", lambda c: SimpleNamespace(layer=layers[f"edit:{key_of(c)}"])
    )
    with Display(tasks, 1, Console(quiet=True, force_terminal=False)) as shown:
        shown.progress({key: at(100, 300, 5.0, "prefixes") for key in (none, ultra)})
        assert "through the frozen layers 100 of 300, 0 s so far" in caplog.messages[-1]
        clock += 5
        both = {none: at(150, 300, 10.0, "prefixes"), ultra: at(140, 300, 10.0, "prefixes")}
        shown.progress(both)
        assert "through the frozen layers 150 of 300 at 10/s, 5 s so far" in caplog.messages[-1]
        shown.progress({none: at(150, 300, 10.0, "prefixes"), ultra: at(9, 90, 10.0, "prefixes")})
        assert "through the frozen layers 159 of 390" in caplog.messages[-1]  # other prompts
        layers[ultra] = 0
        shown.progress({key: at(150, 300, 10.0, "prefixes") for key in (none, ultra)})
        assert "through the frozen layers 300 of 600" in caplog.messages[-1]  # of another store


def test_tasks_that_were_done_before_are_said_to_be_so(
    tasks: dict[str, Task], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model, none, ultra, _ = tasks
    editors = "editors=[{editor: rledit, settings: {initial_step: 1.0e-3}}]"
    trained = tasks_of(cells_of(load_grid(GRID, [editors])))
    train = next(key for key in trained if key.startswith("train:"))
    with Display(tasks | trained, 1, Console(quiet=True, force_terminal=False)) as shown:
        shown.finished(Finished(task=tasks[model], reason=None, found=True))
        shown.finished(Finished(task=trained[train], reason=None, found=True))
        shown.finished(Finished(task=tasks[none], reason=None, found=True))
        shown.progress({ultra: at(1, 3, 75.0)})
        shown.finished(Finished(task=tasks[ultra], reason=None))
    assert caplog.messages == [
        "model llama-tiny: there already",
        "train rledit 3x4 seed 0: taken from the cache",
        "edit none 3x4 seed 0: in the lake already",
        "edit ultraedit 3x4 seed 0: done in 1 min 15 s",
    ]
    assert shown.situation().found == 3 and shown.situation().edits_per_second < 1e7


def test_failures_of_several_models_and_datasets_are_told_apart() -> None:
    """Also those of tasks that have one label, as two models of the same name."""
    more = [
        "editors=[{editor: ft}]",
        "models=[{name: a, world_model: tiny}, {name: b, world_model: tiny, overrides: {seed: 1}}]",
        "datasets=[{name: x, world: {n_subjects: 60}}, {name: y, world: {n_subjects: 70}}]",
    ]
    tasks = tasks_of(cells_of(load_grid(GRID, more)))
    shown = Display(tasks, 1, Console(quiet=True, force_terminal=False))
    for task in tasks.values():
        shown.finished(Finished(task=task, reason="boom"))
    edits = [f"edit ft 3x4 seed 0 {model} {data}" for model in "ab" for data in "xy"]
    models = [f"model {model}{again}" for model in "ab" for again in ("", " (2)")]
    assert sorted(shown.situation().failures) == sorted(edits + models)


DETAIL = "trajectory 8 of at most 60, validation 76.2 (best 77.3 at 6), patience 4 of 5"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_every_task_whole(
    tasks: dict[str, Task], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, rates and times are cut nowhere, and no line is broken inside a task's numbers."""
    editors = "editors=[{editor: rledit, settings: {initial_step: 1.0e-3}}]"
    every = tasks | tasks_of(cells_of(load_grid(GRID, [editors])))
    train = next(key for key in every if key.startswith("train:"))
    _, none, *_ = tasks
    clock = time.time()
    monkeypatch.setattr(time, "time", lambda: clock)
    console = Console(force_terminal=True, width=columns, file=io.StringIO())
    with Display(every, 2, console, {none: 30.0}) as shown:
        for done in (20, 30):
            clock += 5
            progress = replace(at(done, 60, 40.0, "train"), detail=DETAIL, left=95.0 - done)
            shown.progress({train: progress, none: at(done // 10 - 1, 3, 10.0)})
        picture = shown._picture()
    plain = Console(width=columns, record=True, file=io.StringIO())
    plain.print(picture)
    lines = [line.rstrip() for line in plain.export_text().splitlines()]
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    assert "…" not in text
    counts = "0 of 4 cells done, 0 failed; 2 tasks running, 4 waiting"
    assert counts in text and "left" in text
    assert "train rledit 3x4 seed 0 ━" in text and "edit none 3x4 seed 0 ━" in text
    assert any(line.endswith("30/60 batches at 2/s, at most 1 min 05 s left") for line in lines)
    assert f"  {DETAIL}"[: columns - 2] in text
    row = next(line for line in lines if line.startswith("train rledit"))
    assert ("30/60 batches" in row) == (columns == 120)
