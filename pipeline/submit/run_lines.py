"""Runs of a lake for a terminal: what each does now, or how it ended and how to go on."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from pipeline.run.durations import duration
from pipeline.run.run_file import RunRecord
from pipeline.storage.redaction import redact

_SHOWN_TASKS = 12


def run_lines(record: RunRecord) -> Iterator[str]:
    """A run in a few lines, indented below the name of its grid."""
    now = time.time()
    state = record.state(now)
    yield f"  {_headline(record, state, now)}"
    yield f"  {_cells(record)}"
    running = record.now.running
    if state != "running" and running:
        yield "  under way then; what has saved a state goes on from it, the rest begins again:"
    for task in running[:_SHOWN_TASKS]:
        reached, _, _ = task.position.partition(" at ")
        yield f"    {task.label}: {task.position if state == 'running' else reached}"
        if task.detail:
            yield f"      {task.detail}"
    if len(running) > _SHOWN_TASKS:
        yield f"    and {len(running) - _SHOWN_TASKS} more"
    if state == "running":
        yield from _waiting(record)
    for label, reason in list(record.now.failures.items())[:_SHOWN_TASKS]:
        yield f"  failed {label}: {redact(reason).splitlines()[0]}"
    if state != "running" and record.how != "finished":
        yield f"  go on with: {go_on(record)}"


def go_on(record: RunRecord) -> str:
    """The command that goes on from where a run stopped, as it is typed from here."""
    if not record.command:
        return "submitting the grid again"
    if record.folder == os.getcwd():
        return record.command
    return f"cd {shlex.quote(record.folder)} && {record.command}"


def _headline(record: RunRecord, state: str, now: float) -> str:
    process = f"process {record.pid} on {record.place.split()[0]}"
    if state == "running":
        heard = f"heard of {duration(now - record.updated)} ago"
        return f"running for {duration(now - record.started)}, {process}, {heard}"
    if state == "gone":
        return (
            f"not running: {process} is gone without a word, killed or with its machine; heard of "
            f"last at {_moment(record.updated)}, {duration(now - record.updated)} ago"
        )
    if state == "silent":
        return (
            f"not heard of for {duration(now - record.updated)}: {process} may be gone, which "
            "cannot be seen from this machine"
        )
    ended = record.ended or record.updated
    reason = f": {record.reason}" if record.reason else ""
    took = duration(ended - record.started)
    return f"{record.how} at {_moment(ended)} after {took}{reason}"


def _cells(record: RunRecord) -> str:
    """Cells by what has become of them, rate and time left."""
    now = record.now
    done = record.done_before + now.done
    failed = sum(label.startswith("edit ") for label in now.failures)
    left = record.cells - done - failed - record.skipped
    before = f" ({record.done_before} before this run)" if record.done_before else ""
    parts = [f"{done} done{before}", f"{failed} failed"]
    parts += [f"{record.skipped} skipped"] if record.skipped else []
    editing = sum(task.label.startswith("edit ") for task in now.running)
    running = record.state() == "running"
    parts += [f"{editing} running"] if running else []
    parts.append(f"{max(0, left - (editing if running else 0))} to run")
    line = f"{record.cells} cells: {', '.join(parts)}"
    if running:
        line += f"; {now.edits_per_second:.2g} edits/s" if now.edits_per_second else ""
        if now.seconds_left is not None:
            by = "" if now.is_measured else " by plan"
            line += f"; about {duration(now.seconds_left)} left{by}"
    return line


def _waiting(record: RunRecord) -> Iterator[str]:
    waiting = ", ".join(f"{n} {kind}" for kind, n in record.now.waiting.items())
    n = record.now.found
    found = f"{n} task{'s' * (n > 1)} found done in the cache or the lake" if n else ""
    parts = [part for part in (f"tasks that wait: {waiting}" if waiting else "", found) if part]
    if parts:
        yield f"  {'; '.join(parts)}"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
