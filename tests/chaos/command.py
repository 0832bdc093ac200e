"""The fault run as a command: an undisturbed run, then round after round."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.config.parse import load_grid
from pipeline.results.tracking.tracker import Tracker
from pipeline.run.reporting import WATCHER
from tests.chaos.cluster import SimulatedCluster
from tests.chaos.driver import Invocation
from tests.chaos.failpoint import FOLDER
from tests.chaos.injector import FaultInjector
from tests.chaos.schedule import KINDS, PHASES, Fault
from tests.chaos.trial import TIMEOUT_SECONDS, Outcome, Setting, Trial, run_paths

logger = logging.getLogger(__name__)

NODES = 2  # beside the head


class FaultRunError(RuntimeError):
    """The undisturbed run failed: there is nothing to disturb."""


def fault_run(grid: Path, faults: Sequence[Fault], folder: Path) -> Generator[Outcome, None, None]:
    """Play rounds on a simulated cluster of three nodes, and yield what each found.

    Args:
        grid: A grid whose cells go through all phases aimed at.
        faults: A fault per round.
        folder: For results and logs; a clean round leaves nothing there.

    Raises:
        FaultRunError: The grid does not run undisturbed.
    """
    control = folder / "control"
    control.mkdir(parents=True)
    environment = {WATCHER: "tests.chaos.failpoint:watch_and_save", FOLDER: str(control)}
    with _ended_by_signal(), SimulatedCluster(folder / "nodes", NODES, environment) as cluster:
        setting = _undisturbed(grid, cluster, FaultInjector(control), folder / "undisturbed")
        for fault in faults:
            place = folder / f"round{fault.number}"
            place.mkdir()
            outcome = Trial(fault, setting, place).run()
            logger.info(outcome.line)
            for problem in outcome.problems:
                logger.error("  %s", problem)
            if not outcome.problems:
                shutil.rmtree(place)
            yield outcome


def run(grid: Path, faults: Sequence[Fault], json_file: Path | None, folder: Path | None) -> bool:
    """Play rounds, print the pairs that were hit; returns whether everything was clean.

    Args:
        grid: The grid.
        faults: A fault per round.
        json_file: Where every round is written as it ends, or nowhere.
        folder: For results and logs; None: a temporary folder, kept if there are problems.
    """
    place = folder or Path(tempfile.mkdtemp(prefix="rledit-faults-"))
    outcomes: list[Outcome] = []
    with closing(fault_run(grid, faults, place)) as rounds:
        for outcome in rounds:
            outcomes.append(outcome)
            if json_file is not None:
                json_file.write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    clean = not any(outcome.problems for outcome in outcomes)
    console = Console()
    console.print(_table(outcomes))
    verdict = "clean" if clean else f"PROBLEMS; results and logs are in {place}"
    console.print(f"{len(outcomes)} rounds: {verdict}", highlight=False)
    if clean and folder is None:
        shutil.rmtree(place)
    return clean


def _undisturbed(
    grid: Path, cluster: SimulatedCluster, injector: FaultInjector, folder: Path
) -> Setting:
    folder.mkdir()
    database, results, log = folder / "empty.db", folder / "results", folder / "driver.log"
    name = load_grid(grid).name
    Tracker(f"sqlite:///{database}", name)
    driver = Invocation(grid, results, cluster.address, log, cluster.client_environment)
    try:
        code = driver.wait(TIMEOUT_SECONDS)
    finally:
        driver.end()
    if code != 0:
        raise FaultRunError(f"the undisturbed run exited {code}:\n{log.read_text()[-4000:]}")
    reports = injector.counts()
    logger.info("undisturbed run: reports %s", dict(reports))
    return Setting(
        grid=grid,
        name=name,
        cluster=cluster,
        injector=injector,
        undisturbed=run_paths(results),
        reports=reports,
        database=database,
    )


def _table(outcomes: Sequence[Outcome]) -> Table:
    """How often each pair of fault and phase was hit."""
    hits = Counter((o.fault.kind, o.fault.phase) for o in outcomes if o.hit is not None)
    table = Table("fault", *PHASES, title="unfinished cells hit")
    for kind in KINDS:
        table.add_row(kind, *(str(hits[kind, phase]) for phase in PHASES))
    return table


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Turn SIGTERM into an exit, so that no node is left behind."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
