"""Failpoint in a worker: records every report, and holds the worker at the chosen one.

`watch_and_save` is what the environment variable of `pipeline.run.reporting.watched` names. Worker
and fault run share a folder (`RLEDIT_FAULTS`), where a file that only one process can create
decides.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from pipeline.run.stages import covariance, edit, train

FOLDER = "RLEDIT_FAULTS"
AIM = "aim.json"
LONGEST_WAIT_SECONDS = 120.0
POLL_SECONDS = 0.005


def watch_and_save(task: str, stage: str, done: int, total: int) -> None:
    """`watch`, in a worker that saves its resume state whenever it can.

    The cells of a fault run are over before the time between two states: without this, no fault
    would ever be followed by a resumed cell.
    """
    edit.SAVE_EVERY_SECONDS = covariance.SAVE_EVERY_SECONDS = train.SAVE_EVERY_SECONDS = 0.0
    watch(task, stage, done, total)


def watch(task: str, stage: str, done: int, total: int) -> None:
    """Note a report; if it is the one aimed at, wait until the fault run lets go.

    Args:
        task: Key of the task.
        stage: What the worker does next.
        done: Units of the stage that are finished.
        total: Units of the stage.
    """
    folder = Path(os.environ[FOLDER])
    seen = {"task": task, "stage": stage, "done": done, "total": total, "pid": os.getpid()}
    with trace_file(folder, os.getpid()).open("a") as trace:
        trace.write(json.dumps(seen) + "\n")
    failpoint = read_failpoint(folder)
    if failpoint is None or failpoint["stage"] != stage or ends_cell(stage, done, total):
        return
    if not _mine(folder, failpoint["id"], failpoint["skip"]):
        return
    held = held_file(folder, failpoint["id"])
    draft = held.with_suffix(".draft")
    draft.write_text(json.dumps(seen))
    draft.replace(held)
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while read_failpoint(folder) == failpoint and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def ends_cell(stage: str, done: int, total: int) -> bool:
    """Whether a report says that the cell is done: there is nothing left to hit."""
    return stage == "commit" and done == total


def read_failpoint(folder: Path) -> dict[str, str | int] | None:
    """What is aimed at, or None."""
    try:
        failpoint: dict[str, str | int] = json.loads((folder / AIM).read_text())
    except FileNotFoundError:
        return None
    return failpoint


def trace_file(folder: Path, pid: int) -> Path:
    """Where a worker's reports are noted, a line each."""
    return folder / f"trace-{pid}.jsonl"


def held_file(folder: Path, failpoint: str | int) -> Path:
    """Where the worker that waits says so."""
    return folder / f"{failpoint}.held"


def _mine(folder: Path, failpoint: str | int, skip: str | int) -> bool:
    """Whether this is report number `skip` (from 0) since the aim was taken, over all workers."""
    for number in range(int(skip) + 1):
        try:
            (folder / f"{failpoint}.report{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number == skip
    return False
