"""Entry point of a submitted job: probe the storage from every node, then run the grid."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from uuid import uuid4

from rich.console import Console

from pipeline.plan.cell_keys import key_of
from pipeline.plan.grid_plan import (
    code_lines,
    counts_line,
    make_plan,
    pool_lines,
    shared_lines,
    skip_lines,
)
from pipeline.plan.preflight import checked
from pipeline.results.lake.lake import Lake
from pipeline.run.driver import run_plan
from pipeline.run.logs import configure_logging
from pipeline.run.signals import ended_by_signal
from pipeline.storage.run_paths import RunPaths
from pipeline.submit.probe import FAILED, PASSED, probe
from pipeline.submit.ray_cluster import on_every_node
from pipeline.submit.submission import Submission, SubmitError, write_record

logger = logging.getLogger(__name__)

PROBE_SECONDS = 120.0

# Exit codes; the others are those of every command.
FAILED_CELLS, UNUSABLE = 1, 2


def execute(path: Path, address: str = "auto") -> int:
    """Run a submission on the cluster this process is part of.

    Returns:
        0 when every cell is done, `FAILED_CELLS` when some failed, `UNUSABLE` when a node cannot
        reach the storage.

    Raises:
        Terminated: The job was told to end, as by `rledit cancel`.
    """
    configure_logging()
    with ended_by_signal():
        return _execute(Submission.read(path), address)


def _execute(submission: Submission, address: str) -> int:
    run_paths = _run_paths(submission)
    if not _probed(submission, run_paths, address):
        return UNUSABLE
    grid = submission.parsed()
    plan = make_plan(
        grid,
        Lake(run_paths.lake),
        submission.replace,
        rerun_other_code=submission.rerun_other_code,
    )
    write_record(run_paths.lake, submission.name, grid.name, [key_of(cell) for cell in plan.cells])
    counts = counts_line(plan)
    said = [*pool_lines(plan.cells), *skip_lines(plan.missing)]
    said += [*shared_lines(plan), *code_lines(plan)]
    for line in (*said, counts):
        logger.info("%s", line)
    if plan.missing:
        plan, refused = checked(plan)
        for line in refused:
            logger.warning("%s", line)
    tags = {"submission_id": submission.name, "ray_session": submission.session}
    failed = run_plan(grid, plan, run_paths, Console(stderr=True), address=address, tags=tags)
    return FAILED_CELLS if failed else 0


def _run_paths(submission: Submission) -> RunPaths:
    tracking = submission.tracking or os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking:
        raise SubmitError(
            "there is no tracking store: submit with --tracking, or set MLFLOW_TRACKING_URI on the "
            "head node before Ray starts there"
        )
    return RunPaths(lake=submission.lake, cache=submission.cache, tracking=tracking)


def _probed(submission: Submission, run_paths: RunPaths, address: str) -> bool:
    found = probe(
        {"lake": run_paths.lake, "cache": run_paths.cache},
        f"{submission.name}-{uuid4().hex[:8]}",
        lambda work: on_every_node(work, address, PROBE_SECONDS),
    )
    for node, problem in found.items():
        logger.error("%s: node %s %s", FAILED, node, problem)
    if not found:
        logger.info(PASSED)
    return not found
