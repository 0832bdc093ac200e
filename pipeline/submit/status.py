"""Status of submissions and grids: from the job server, the lake and the tracking store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellRecord
from pipeline.results.tracking.experiment import Tracked, of_lake, tracked
from pipeline.results.tracking.liveness import (
    Invocation,
    minutes_since,
    process_alive,
    with_start,
)
from pipeline.results.tracking.owner import known_owner
from pipeline.results.tracking.tracker import Tracker
from pipeline.results.tracking.uri import TrackingError, is_server, page_of
from pipeline.run.run_file import RunRecord, read_runs
from pipeline.storage.redaction import redact
from pipeline.storage.run_paths import RunPaths
from pipeline.submit.ray_cluster import Job
from pipeline.submit.run_lines import run_lines
from pipeline.submit.submission import read_record

_SHOWN_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Cells of a submission or a grid by what the lake says of them.

    Attributes:
        total: How many there are; None: only the lake's own are known.
        failed: Path and reason of those that failed.
        skipped: Path and reason of those that cannot be run.
    """

    total: int | None
    done: int
    failed: Mapping[str, str]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        parts = [f"{self.done} done", f"{len(self.failed)} failed"]
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        if self.total is None:
            return f"cells: {', '.join(parts)}"
        left = self.total - self.done - len(self.failed) - len(self.skipped)
        return f"{self.total} cells: {', '.join(parts)}, {left} to run"


def cells_of_grid(lake: str, grid: str, submission: str | None = None) -> Cells:
    """Count the cells of a grid in a lake, each once however many addresses it has there.

    With a submission, only those it asked for.
    """
    store = Lake(lake)
    records = store.manifest(grid) if store.exists() else []
    keys = read_record(lake, submission) if submission and store.exists() else None
    if keys is not None:
        records = [record for record in records if record.address.cell_key in set(keys)]
    by_key: dict[str, CellRecord] = {}
    for record in records:
        by_key.setdefault(record.address.cell_key, record)
    reasons: dict[str, dict[str, str]] = {"failed": {}, "skipped": {}}
    for record in by_key.values():
        if record.status in reasons:
            a = record.address
            editor = f"{a.editor}/{a.variant}" if a.variant else a.editor
            path = f"{a.model}/{a.dataset}/{editor}/{a.n_batches}x{a.batch_size}/seed{a.seed}"
            reasons[record.status][path] = record.reason or "no reason recorded"
    return Cells(
        total=len({*keys}) if keys is not None else None,
        done=sum(record.done for record in by_key.values()),
        failed=reasons["failed"],
        skipped=reasons["skipped"],
    )


def job_lines(job: Job, lake: str | None = None, tracking: str | None = None) -> Iterator[str]:
    """A job, its cells and its tracked run; `lake` and `tracking` in place of what the job has."""
    moment = f", since {job.started:%Y-%m-%d %H:%M} UTC" if job.started else ""
    ended = f", ended {job.ended:%H:%M}" if job.ended else ""
    yield f"{job.name}: {job.status}{moment}{ended}"
    if job.status in ("FAILED", "PENDING") and job.message:
        yield f"  {job.message.splitlines()[0]}"
    grid = job.metadata.get("grid")
    if grid is None:
        return
    lake = lake or job.metadata.get("lake", "")
    if Lake(lake).exists():
        yield from _cell_lines(cells_of_grid(lake, grid, job.name))
    else:
        yield f"  {redact(lake)} is not there (yet), seen from here; say with --lake where it is"
    tracking = tracking or job.metadata.get("tracking")
    if tracking and not job.over:
        try:
            yield from _tracked_lines(tracking, _of_job(tracking, grid, lake), job.name)
        except TrackingError as error:  # a store that is away is no error
            yield f"  {error}"


def ended_lines(job: Job, before: bool, waited: float) -> Iterator[str]:
    """A job that was told to end: how it ended, what is kept, and how to go on.

    Args:
        before: Whether it had ended before it was told to.
        waited: Seconds that it was given.
    """
    if not job.over:
        yield (
            f"{job.name}: told to end, and still {job.status} after {waited:.0f} s; follow it with "
            f"rledit status {job.name}, or wait longer with --wait"
        )
        return
    yield f"{job.name}: {job.status}" + (" (it had ended before)" if before else ", the job ended")
    grid, lake = job.metadata.get("grid"), job.metadata.get("lake", "")
    if grid is not None and Lake(lake).exists():
        cells = cells_of_grid(lake, grid, job.name)
        yield f"  {cells}; submitting the grid again goes on from here"


def nothing_line(run_paths: RunPaths, grid: str | None = None) -> str:
    """There is no grid, or not this one; says where was looked and what there is."""
    store = Lake(run_paths.lake)
    in_lake = store.grids() if store.exists() else ()
    known = sorted({*in_lake, *(one.name for one in tracked(run_paths.tracking))})
    there = f"; there are {', '.join(known)}" if known else ""
    what = "no grid" if grid is None else f"no grid {grid!r}"
    return f"{what} in {redact(run_paths.lake)} or {redact(run_paths.tracking)}{there}"


def grids_lines(
    run_paths: RunPaths, grid: str | None = None, always_tracked: bool = False
) -> Iterator[str]:
    """The grids of a lake or a tracking store, without asking any cluster.

    Of each: its newest run and all that go on, what the lake has, and what the tracking store says.

    Args:
        grid: Of this grid alone. Where the lake knows its runs, the tracking store, which is slow
            to open, is not asked unless `always_tracked` is set.
    """
    store = Lake(run_paths.lake)
    owner = known_owner(store) if store.exists() else None
    in_lake = store.grids() if store.exists() else []
    records = read_runs(store.storage, grid) if store.exists() else []
    runs = {record.grid for record in records}
    found: list[Tracked] = []
    away = ""
    if always_tracked or grid not in runs:
        try:
            found = tracked(run_paths.tracking)
        except TrackingError as error:  # the lake has its say all the same
            away = str(error)
    for name in sorted({*in_lake, *runs, *(one.grid for one in found)}):
        if grid not in (None, name):
            continue
        own = of_lake(found, name, owner)
        if own is not None or name in {*in_lake, *runs}:
            yield name
            yield from _own_lines(run_paths, name, [r for r in records if r.grid == name], own)
        for other in found:
            if other.grid == name and other != own:
                yield f"{other.name} (of another lake)"
                yield from _tracked_lines(run_paths.tracking, other)
    if away:
        yield away


def _own_lines(
    run_paths: RunPaths, grid: str, records: Sequence[RunRecord], known: Tracked | None
) -> Iterator[str]:
    """A grid's runs, its cells in the lake, and its newest tracked run."""
    for number, record in enumerate(records):
        if number == 0 or record.state() == "running":
            yield from run_lines(record)
    lead = "in the lake, " if records else ""
    yield from _cell_lines(cells_of_grid(run_paths.lake, grid), lead)
    yield from _tracked_lines(run_paths.tracking, known)


def _cell_lines(cells: Cells, lead: str = "") -> Iterator[str]:
    yield f"  {lead}{cells}"
    for what, reasons in (("failed", cells.failed), ("skipped", cells.skipped)):
        for path, reason in list(reasons.items())[:_SHOWN_FAILURES]:
            yield f"  {what} {path}: {redact(reason).splitlines()[0]}"
        if len(reasons) > _SHOWN_FAILURES:
            yield f"  and {len(reasons) - _SHOWN_FAILURES} more {what}"


def _of_job(uri: str, grid: str, lake: str) -> Tracked | None:
    """The experiment of a job's grid."""
    store = Lake(lake)
    return of_lake(tracked(uri), grid, known_owner(store) if store.exists() else None)


def _tracked_lines(uri: str, known: Tracked | None, submission: str | None = None) -> Iterator[str]:
    """The newest invocation of an experiment, or of a submission there, and its page's address."""
    if known is None:
        return
    for invocation in Tracker(uri, known.grid, known=known).invocations():
        if submission in (None, invocation.tags.get("submission_id")):
            yield _invocation_line(invocation)
            break
    if is_server(uri):
        yield f"  MLflow: {page_of(uri, known.experiment_id)}"


def _invocation_line(invocation: Invocation) -> str:
    m = invocation.metrics
    live = ""
    alive = process_alive(with_start(invocation.tags, invocation.started))
    if invocation.status == "RUNNING" and not alive:
        live = ", though its process is gone; rledit close-stale-runs closes it, or the next run"
    elif invocation.status == "RUNNING":
        if {"cells", "cells_ended", "tasks_running"} <= m.keys():
            live += f", {m['cells_ended']:.0f} of {m['cells']:.0f} missing cells ended"
            live += f", {m['tasks_running']:.0f} tasks running"
        beat = invocation.tags.get("heartbeat")
        live += f", heard of {minutes_since(beat):.1f} min ago" if beat else ""
    return f"  tracking: {invocation.name} {invocation.status}{live}"
