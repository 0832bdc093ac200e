"""The file of a run in its lake, and what `rledit status` says of it: running, ended, killed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.run import command_line as commands
from pipeline.run.command_line import command_line
from pipeline.run.processes import alive, place
from pipeline.run.run_file import (
    FOLDER,
    RunFile,
    RunningTask,
    RunRecord,
    RunSituation,
    read_runs,
    run_file,
)
from pipeline.run.signals import Interrupted, Terminated
from pipeline.storage.object_store import Storage

NOW = RunSituation(
    done=3,
    failures={"edit ft 20x10 seed 0": "ValueError: no such layer\nmore"},
    found=2,
    seconds_left=754.0,
    is_measured=True,
    edits_per_second=0.8,
    waiting={"train": 1, "edit": 3},
    running=(
        RunningTask(
            label="train rledit 20x10 seed 0",
            position="30/80 batches at 0.064/s, at most 13 min 01 s left",
            detail="trajectory 1 of at most 4",
            seconds=470.0,
        ),
        RunningTask(label="edit memit 20x10 seed 0", position="3/20 batches", detail="", seconds=9),
    ),
)
COUNTS: dict[str, Any] = {"cells": 12, "done_before": 2, "skipped": 1}


@pytest.fixture
def lake(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "results" / "lake")


def status(tmp_path: Path, *words: str) -> list[str]:
    told = CliRunner().invoke(app, ["status", *words, "--results", str(tmp_path / "results")])
    assert told.exit_code == 0, told.output
    return told.output.splitlines()


def test_a_run_that_goes_on_is_shown_with_its_tasks(lake: Storage, tmp_path: Path) -> None:
    with run_file(lake, "mine", **COUNTS) as file:
        assert status(tmp_path, "mine")[1].startswith("  running for ")
        file.update(NOW)
        name, running, *rest = status(tmp_path, "mine")
    assert name == "mine" and f"process {os.getpid()} on " in running and "heard of " in running
    assert rest == [
        "  12 cells: 5 done (2 before this run), 1 failed, 1 skipped, 1 running, 4 to run; "
        "0.8 edits/s; about 12 min 34 s left",
        "    train rledit 20x10 seed 0: 30/80 batches at 0.064/s, at most 13 min 01 s left",
        "      trajectory 1 of at most 4",
        "    edit memit 20x10 seed 0: 3/20 batches",
        "  tasks that wait: 1 train, 3 edit; 2 tasks found done in the cache or the lake",
        "  failed edit ft 20x10 seed 0: ValueError: no such layer",
        "  in the lake, cells: 0 done, 0 failed",
    ]


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (None, "finished"),
        (Interrupted(), "interrupted"),
        (Terminated("x"), "told to end"),
        (RuntimeError("no room\nat all"), "stopped by an error"),
    ],
)
def test_how_a_run_ended_and_how_to_go_on(
    error: BaseException | None, how: str, lake: Storage, tmp_path: Path
) -> None:
    try:
        with run_file(lake, "mine", **COUNTS) as file:
            file.update(replace(NOW, running=NOW.running if error else ()))
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    (record,) = read_runs(lake, "mine")
    assert record.how == how and record.ended is not None and record.state() == "ended"
    text = "\n".join(status(tmp_path, "mine"))
    assert f"mine\n  {how} at 20" in text and " left\n" not in text
    again = f"  go on with: {command_line()}"
    assert (again in text) == (error is not None)
    assert ("under way then; what has saved a state goes on from it" in text) == (error is not None)
    assert (": RuntimeError: no room\n" in text) == (how == "stopped by an error")


def test_failed_cells_are_said_by_the_run_itself(lake: Storage, tmp_path: Path) -> None:
    with run_file(lake, "mine", **COUNTS) as file:
        file.end("failed", "2 cells failed or were skipped")
    assert "failed at 20" in status(tmp_path, "mine")[1]
    assert "after 0 s: 2 cells failed or were skipped" in status(tmp_path, "mine")[1]


KILLED = """
import sys, time
from pipeline.run.run_file import run_file
from pipeline.storage.object_store import Storage
with run_file(Storage(sys.argv[1]), "mine", cells=4, done_before=1, skipped=0) as file:
    print("up", flush=True)
    time.sleep(60)
"""


def test_a_run_that_was_killed_is_never_said_to_be_running(lake: Storage, tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(lake.local_path())]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        (record,) = read_runs(lake)
        assert record.state() == "running"
        process.send_signal(signal.SIGKILL)
        # Not waited for yet: a zombie, which has a number and a beginning still.
        deadline = time.monotonic() + 10
        while alive(record.pid, record.born) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.returncode is None and read_runs(lake)[0].state() == "gone"
        process.wait()
    lines = status(tmp_path, "mine")
    gone = f"  not running: process {record.pid} on {place().split()[0]} is gone without a word"
    assert lines[1].startswith(gone)
    assert any(line.startswith("  go on with: ") and "mine" not in line[:14] for line in lines)
    # The next run of the grid takes its place.
    with run_file(lake, "mine", **COUNTS):
        assert [r.state() for r in read_runs(lake, "mine")] == ["running"]


def test_a_run_elsewhere_is_running_as_long_as_it_is_heard_of(lake: Storage) -> None:
    with run_file(lake, "mine", **COUNTS):
        (here,) = read_runs(lake)
    there = replace(here, ended=None, how="running", place="another-host")
    assert there.state(there.updated + 60) == "running"
    assert there.state(there.updated + 120) == "silent"


def test_a_second_run_at_the_same_time_keeps_its_own_file(lake: Storage, tmp_path: Path) -> None:
    with run_file(lake, "mine", **COUNTS), run_file(lake, "mine", **COUNTS):
        pass
    assert len(read_runs(lake, "mine")) == 2 and read_runs(lake, "other") == []
    with run_file(lake, "mine", **COUNTS):
        assert len(read_runs(lake, "mine")) == 1
        assert len([line for line in status(tmp_path) if "running for" in line]) == 1


def test_runs_of_a_grid_whose_name_goes_on_after_a_slash_are_its_own(lake: Storage) -> None:
    for grid in ("mine/long", "mine"):
        with run_file(lake, grid, **COUNTS):
            pass
    assert [r.grid for r in read_runs(lake, "mine")] == ["mine"]
    assert [r.grid for r in read_runs(lake)] == ["mine", "mine/long"]


def test_what_cannot_be_written_or_read_stops_nothing(
    lake: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lake.write_bytes(f"{FOLDER}/mine/20200101-half.json", b'{"grid": "mine", "ce')
    assert read_runs(lake) == []

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with run_file(lake, "mine", **COUNTS) as file:
        monkeypatch.setattr(lake, "write_bytes", full)
        file.update(NOW)
        file.update(NOW)
    said = [m for m in caplog.messages if "rledit status cannot show this run" in m]
    assert said == ["rledit status cannot show this run: no space left on device"]


def test_a_file_is_written_now_and_then(lake: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_file(lake, "mine", **COUNTS) as file:
        monkeypatch.setattr(file, "_written", time.monotonic() - 60)
        assert isinstance(file, RunFile) and file.is_due
        file.update(NOW)
        assert not file.is_due
        (record,) = read_runs(lake)
        assert isinstance(record, RunRecord) and record.now == NOW


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["/usr/bin/python3", "{bin}/rledit", "run", "my grid.yaml"], "rledit run 'my grid.yaml'"),
        (["python", "-m", "jobs.demo", "--full"], "python -m jobs.demo --full"),
        (["/elsewhere/python", "-c", "x = 1"], "/elsewhere/python -c 'x = 1'"),
        (
            ["python", "-m", "pipeline.cli", "run", "--tracking", "https://me:secret@host/x"],
            "python -m pipeline.cli run --tracking 'https://***@host/x'",
        ),
    ],
)
def test_the_command_is_said_as_it_is_typed(
    words: list[str], typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bin" / "rledit"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    given = [word.format(bin=script.parent) for word in words]
    assert command_line(given) == typed
    monkeypatch.setattr(sys, "orig_argv", given)
    assert command_line() == typed
    # Off the path, it is called by where it is.
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.chdir(tmp_path)
    if "rledit" in words[1]:
        assert commands.command_line(given).startswith(f"{shlex.quote('bin/rledit')} run")
