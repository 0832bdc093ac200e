"""The fault run's own parts: a difference or a loss is reported, never passed over."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest

from pipeline.results.lake.addresses import home_name
from pipeline.results.lake.lake import Lake
from pipeline.results.tracking.tracker import Tracker
from pipeline.run.reporting import WATCHER, Stage, silent, watched
from pipeline.storage.run_paths import RunPaths
from tests.chaos import failpoint, processes
from tests.chaos.checks import finish_times, problems
from tests.chaos.injector import FaultInjector
from tests.chaos.schedule import KINDS, PHASES, schedule
from tests.unit.helpers.lake_fixtures import cell

CELLS = [cell(editor=name, n_batches=2, batch_size=3) for name in ("none", "ft", "rledit")]


@pytest.mark.parametrize("seed", range(5))
def test_thirty_rounds_hit_every_pair(seed: int) -> None:
    faults = schedule(30, seed)
    assert [fault.number for fault in faults] == list(range(1, 31))
    assert (
        len({(fault.kind, fault.phase) for fault in faults[:24]}) == len(KINDS) * len(PHASES) == 24
    )
    assert all(0 <= fault.moment < 1 and fault.delay >= 0 for fault in faults)
    assert {fault.gentle for fault in faults} == {True, False}


def test_the_seed_decides_everything() -> None:
    assert schedule(10, 3) == schedule(10, 3)
    assert schedule(10, 3) != schedule(10, 4)
    some = schedule(4, 0, ["node"], ["commit", "score"])
    assert {(fault.kind, fault.phase) for fault in some} == {("node", "commit"), ("node", "score")}
    with pytest.raises(ValueError, match="'earthquake' is none of worker, node, driver, disk"):
        schedule(1, 0, ["earthquake"])


def test_a_worker_waits_at_the_report_aimed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoint.FOLDER, str(tmp_path))
    monkeypatch.setenv(WATCHER, "tests.chaos.failpoint:watch")
    reached: list[tuple[str, int]] = []

    def note(stage: Stage, done: int, *_: object) -> None:
        reached.append((stage, done))

    report = watched(note, "edit:k")
    injector = FaultInjector(tmp_path)
    injector.arm("score", skip=1)

    def work() -> None:
        for done in range(3):
            report("edit", done, 3)
            report("score", done, 3)

    worker = threading.Thread(target=work)
    worker.start()
    seen = injector.wait(lambda: not worker.is_alive(), timeout=10)
    assert seen is not None
    assert (seen.task, seen.stage, seen.done, seen.total) == ("edit:k", "score", 1, 3)
    assert reached[-1] == ("score", 1) and injector.last(seen.pid) == seen
    injector.disarm()
    worker.join(10)
    assert reached[-1] == ("score", 2)
    assert injector.counts() == {"edit": 3, "score": 3}
    injector.arm("commit", skip=0)
    assert injector.wait(lambda: True, timeout=10) is None
    injector.clear()
    assert not injector.counts()


def test_without_the_variable_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WATCHER, raising=False)
    assert watched(silent, "edit:k") is silent


def test_a_refused_write_fails_until_it_is_allowed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        pathlib.Path(line.strip()).write_text('x')\n"
        "        print('written', flush=True)\n"
        "    except OSError as error:\n"
        "        print(error.strerror, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None

    def write(name: str) -> str:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(f"{tmp_path / name}\n")
        child.stdin.flush()
        return child.stdout.readline().strip()

    try:
        assert write("before") == "written"
        processes.refuse_writes(child.pid)
        assert write("during") == "File too large"
        processes.allow_writes(child.pid)
        assert write("after") == "written"
    finally:
        child.stdin.close()
        child.stdout.close()
        child.wait(10)


def test_a_process_is_ended_with_its_descendants() -> None:
    nested = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    child = subprocess.Popen([sys.executable, "-c", nested])
    while not (below := processes.descendants(child.pid)):
        assert child.poll() is None
    processes.kill([child.pid, *below])
    assert child.wait(10) == -9
    assert not any(processes.alive(pid) for pid in below)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    root = tmp_path_factory.mktemp("undisturbed")
    return filled(RunPaths.under(root, tracking=f"sqlite:///{root / 'mlflow.db'}"))


@pytest.fixture
def run_paths(undisturbed: RunPaths, tmp_path: Path) -> RunPaths:
    """A copy of the undisturbed results."""
    source = Path(undisturbed.lake).parent
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    return RunPaths.under(tmp_path, tracking=f"sqlite:///{tmp_path / 'mlflow.db'}")


def filled(run_paths: RunPaths) -> RunPaths:
    lake, tracker = Lake(run_paths.lake), Tracker(run_paths.tracking, "demo")
    parent = tracker.start("run")
    for result in CELLS:
        lake.commit(result)
        tracker.log_cell(parent, result)
    tracker.finish(parent)
    return run_paths


@pytest.mark.long
def test_equal_results_are_clean(run_paths: RunPaths, undisturbed: RunPaths) -> None:
    done = finish_times(Lake(run_paths.lake))
    assert len(done) == 3
    assert problems(run_paths, undisturbed, done) == []


@pytest.mark.long
def test_a_lost_cell_is_found(run_paths: RunPaths, undisturbed: RunPaths) -> None:
    lake = Lake(run_paths.lake)
    lake.forget(CELLS[0].address.cell_key)
    found = problems(run_paths, undisturbed, {})
    assert any("is lost" in problem for problem in found)
    assert any(problem.startswith("diff: ") for problem in found)


@pytest.mark.long
def test_a_cell_that_was_written_twice_is_found(run_paths: RunPaths, undisturbed: RunPaths) -> None:
    lake, one = Lake(run_paths.lake), CELLS[0]
    lake.storage.delete(home_name(one.address.cell_key))
    lake.commit(dataclasses.replace(one, address=dataclasses.replace(one.address, model="again")))
    found = problems(run_paths, undisturbed, {})
    assert f"cell {one.address.cell_key} has 2 manifest rows" in found


@pytest.mark.long
def test_a_file_too_many_is_found(run_paths: RunPaths, undisturbed: RunPaths) -> None:
    (file,) = Path(run_paths.lake).glob("scores/**/*ft*.parquet")
    shutil.copy(file, file.with_stem("doubled"))
    (found,) = problems(run_paths, undisturbed, {})
    assert "doubled.parquet is named by no cell" in found


@pytest.mark.long
def test_an_unfinished_file_that_looks_whole_is_found(
    run_paths: RunPaths, undisturbed: RunPaths
) -> None:
    Path(run_paths.lake, "scores", ".tmp-half").write_text("")
    assert problems(run_paths, undisturbed, {}) == []
    Path(run_paths.lake, "scores", ".tmp-half.parquet").write_text("")
    (found,) = problems(run_paths, undisturbed, {})
    assert "looks whole" in found


@pytest.mark.long
def test_a_cell_that_ran_again_is_found(run_paths: RunPaths, undisturbed: RunPaths) -> None:
    before = {CELLS[1].address.cell_key: datetime(2020, 1, 1)}
    (found,) = problems(run_paths, undisturbed, before)
    assert "ran again" in found


@pytest.mark.parametrize("state", ["states/k", "trained/k.progress", "statistics/k/0.progress"])
@pytest.mark.long
def test_a_state_that_was_left_is_found(
    state: str, run_paths: RunPaths, undisturbed: RunPaths
) -> None:
    Path(run_paths.cache, state).mkdir(parents=True)
    (found,) = problems(run_paths, undisturbed, {})
    assert "was not cleared" in found


@pytest.mark.long
def test_an_open_run_is_found(run_paths: RunPaths, undisturbed: RunPaths) -> None:
    Tracker(run_paths.tracking, "demo").start("left open")
    (found,) = problems(run_paths, undisturbed, {})
    assert found == "MLflow: 1 runs were left RUNNING"


@pytest.mark.long
def test_a_cell_that_mlflow_lacks_is_found(run_paths: RunPaths, undisturbed: RunPaths) -> None:
    lake, other = Lake(run_paths.lake), Lake(undisturbed.lake)
    more = dataclasses.replace(cell(editor="mend", n_batches=2, batch_size=3))
    lake.commit(more)
    other.commit(more)
    try:
        (found,) = problems(run_paths, undisturbed, {})
    finally:
        other.forget(more.address.cell_key)
    assert found == "MLflow: 1 cells were not, or not wholly, logged"
