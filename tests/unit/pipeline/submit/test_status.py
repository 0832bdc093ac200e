"""`rledit status` without an address: runs of a lake, and what the tracking store is asked for."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.results.lake.lake import Lake
from pipeline.results.tracking.liveness import Invocation, own_tags, process_alive
from pipeline.run.run_file import RunningTask, RunSituation, read_runs, run_file
from pipeline.storage.object_store import Storage
from pipeline.storage.run_paths import RunPaths
from pipeline.submit import status
from pipeline.submit.run_lines import go_on, run_lines
from pipeline.submit.submission import write_record
from tests.unit.helpers.lake_fixtures import address, cell


@pytest.fixture
def run_paths(tmp_path: Path) -> RunPaths:
    """One grid, which a run of this process has finished."""
    found = RunPaths.under(tmp_path)
    with run_file(Storage(found.lake), "mine", cells=2, done_before=0, skipped=0):
        pass
    return found


def test_a_tracked_run_whose_process_is_gone_is_not_said_to_run() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        tags = {"host": socket.gethostname(), "pid": str(process.pid), "process_started": "7"}
        run = Invocation(
            run_id="r", name="run mine", status="RUNNING", started=datetime.now(UTC), tags=tags,
            metrics={"cells": 4, "cells_ended": 1, "tasks_running": 2},
        )  # fmt: skip
        assert "its process is gone; rledit close-stale-runs" in status._invocation_line(run)
        deadline = time.monotonic() + 30
        ended = {name: tags[name] for name in ("host", "pid")}
        while process_alive(ended) and time.monotonic() < deadline:
            time.sleep(0.01)
        # Dead, and not waited for: its number is taken still.
        assert process.returncode is None and not process_alive(ended)
    alive = status._invocation_line(replace(run, tags=own_tags()))
    assert alive.endswith("RUNNING, 1 of 4 missing cells ended, 2 tasks running")


def test_the_tracking_store_is_asked_where_the_lake_knows_too_little(
    run_paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def tracked(uri: str) -> list[str]:
        asked.append(uri)
        return []

    monkeypatch.setattr(status, "tracked", tracked)
    lines = list(status.grids_lines(run_paths, "mine"))
    assert lines[0] == "mine" and lines[1].startswith("  finished at ") and asked == []
    assert list(status.grids_lines(run_paths, "mine", always_tracked=True)) == lines
    assert list(status.grids_lines(run_paths, "other")) == []
    assert list(status.grids_lines(run_paths)) == lines
    assert asked == [run_paths.tracking] * 3


def test_a_killed_run_names_what_was_under_way_without_rates(run_paths: RunPaths) -> None:
    (ended,) = read_runs(Storage(run_paths.lake))
    tasks = tuple(
        RunningTask(label=f"edit ft 3x4 seed {i}", position="1/3 batches at 2/s, 1 s left",
                    detail="", seconds=1.0)
        for i in range(14)
    )  # fmt: skip
    now = RunSituation(running=tasks, seconds_left=9.0, edits_per_second=1.0)
    killed = replace(ended, ended=None, how="running", born="1", now=now)
    lines = list(run_lines(killed))
    assert "is gone without a word" in lines[0] and lines[1] == (
        "  2 cells: 0 done, 0 failed, 2 to run"
    )
    assert lines[3] == "    edit ft 3x4 seed 0: 1/3 batches" and "    and 2 more" in lines
    assert lines[-1].startswith("  go on with: ")


def test_a_cell_at_two_addresses_counts_once_and_skipped_ones_are_not_to_run(
    tmp_path: Path,
) -> None:
    lake, place = Lake(str(tmp_path)), str(tmp_path)
    done = lake.commit(cell()).address
    lake.show([done, replace(done, variant="same")])
    skipped = address(editor="ft")
    lake.record_failure(skipped, "too few", identity={}, code_version="1", status="skipped")
    write_record(place, "job", "demo", [done.cell_key, skipped.cell_key, "to run"])
    counted = status.cells_of_grid(place, "demo", "job")
    assert str(counted) == "3 cells: 1 done, 0 failed, 1 skipped, 1 to run"
    assert str(status.cells_of_grid(place, "demo")) == "cells: 1 done, 0 failed, 1 skipped"
    lines = list(status.grids_lines(RunPaths.under(tmp_path, lake=place)))
    assert "  skipped tiny-llama/world/ft/4x10/seed0: too few" in lines


def test_how_to_go_on_from_another_folder_and_of_a_submitted_job(run_paths: RunPaths) -> None:
    (record,) = read_runs(Storage(run_paths.lake))
    there = replace(record, folder="/some where/else", command="rledit run mine.yaml")
    assert go_on(there) == "cd '/some where/else' && rledit run mine.yaml"
    assert go_on(replace(there, command="")) == "submitting the grid again"
