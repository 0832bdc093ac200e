"""The fault run's own parts: it must not be clean because it looks away."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest

from pipeline.faults import gate, processes
from pipeline.faults.checks import finish_times, problems
from pipeline.faults.schedule import KINDS, PHASES, schedule
from pipeline.faults.sight import Sight
from pipeline.locations import Locations
from pipeline.results.lake import Lake
from pipeline.results.tracking import Tracker
from pipeline.run.report import WATCHER, Stage, silent, watched
from tests.unit.lake_fixtures import cell

CELLS = [cell(editor=name, n_batches=2, batch_size=3) for name in ("none", "ft", "rledit")]


@pytest.mark.parametrize("seed", range(5))
def test_thirty_rounds_hit_every_pair(seed: int) -> None:
    aims = schedule(30, seed)
    assert [aim.number for aim in aims] == list(range(1, 31))
    assert len({(aim.kind, aim.phase) for aim in aims[:24]}) == len(KINDS) * len(PHASES) == 24
    assert all(0 <= aim.moment < 1 and aim.delay >= 0 for aim in aims)
    assert {aim.gentle for aim in aims} == {True, False}


def test_the_seed_decides_everything() -> None:
    assert schedule(10, 3) == schedule(10, 3)
    assert schedule(10, 3) != schedule(10, 4)
    some = schedule(4, 0, ["node"], ["commit", "score"])
    assert {(aim.kind, aim.phase) for aim in some} == {("node", "commit"), ("node", "score")}
    with pytest.raises(ValueError, match="'earthquake' is none of worker, node, driver, disk"):
        schedule(1, 0, ["earthquake"])


def test_a_worker_waits_at_the_report_aimed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gate.FOLDER, str(tmp_path))
    monkeypatch.setenv(WATCHER, "pipeline.faults.gate:watch")
    reached: list[tuple[str, int]] = []

    def note(stage: Stage, done: int, total: int) -> None:
        reached.append((stage, done))

    report = watched(note, "edit:k")
    sight = Sight(tmp_path)
    sight.aim("score", skip=1)

    def work() -> None:
        for done in range(3):
            report("edit", done, 3)
            report("score", done, 3)

    worker = threading.Thread(target=work)
    worker.start()
    seen = sight.wait(lambda: not worker.is_alive(), timeout=10)
    assert seen is not None
    assert (seen.task, seen.stage, seen.done, seen.total) == ("edit:k", "score", 1, 3)
    assert reached[-1] == ("score", 1) and sight.last(seen.pid) == seen
    sight.lower()
    worker.join(10)
    assert reached[-1] == ("score", 2)
    assert sight.counts() == {"edit": 3, "score": 3}
    sight.aim("commit", skip=0)
    assert sight.wait(lambda: True, timeout=10) is None
    sight.clear()
    assert not sight.counts()


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
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Locations:
    root = tmp_path_factory.mktemp("undisturbed")
    return filled(Locations.under(root, tracking=f"sqlite:///{root / 'mlflow.db'}"))


@pytest.fixture
def places(undisturbed: Locations, tmp_path: Path) -> Locations:
    """A copy of the undisturbed results."""
    source = Path(undisturbed.lake).parent
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    return Locations.under(tmp_path, tracking=f"sqlite:///{tmp_path / 'mlflow.db'}")


def filled(places: Locations) -> Locations:
    lake, tracker = Lake(places.lake), Tracker(places.tracking, "demo")
    parent = tracker.start("run")
    for result in CELLS:
        lake.commit(result)
        tracker.log_cell(parent, result)
    tracker.finish(parent)
    return places


def test_equal_results_are_clean(places: Locations, undisturbed: Locations) -> None:
    done = finish_times(Lake(places.lake))
    assert len(done) == 3
    assert problems(places, undisturbed, done) == []


def test_a_lost_cell_is_found(places: Locations, undisturbed: Locations) -> None:
    lake = Lake(places.lake)
    lake.forget(CELLS[0].address.cell_key)
    found = problems(places, undisturbed, {})
    assert any("is lost" in problem for problem in found)
    assert any(problem.startswith("diff: ") for problem in found)


def test_a_file_too_many_is_found(places: Locations, undisturbed: Locations) -> None:
    (file,) = Path(places.lake).glob("scores/**/*ft*.parquet")
    shutil.copy(file, file.with_stem("doubled"))
    (found,) = problems(places, undisturbed, {})
    assert "doubled.parquet is named by no cell" in found


def test_an_unfinished_file_that_looks_whole_is_found(
    places: Locations, undisturbed: Locations
) -> None:
    Path(places.lake, "scores", ".tmp-half").write_text("")
    assert problems(places, undisturbed, {}) == []
    Path(places.lake, "scores", ".tmp-half.parquet").write_text("")
    (found,) = problems(places, undisturbed, {})
    assert "looks whole" in found


def test_a_cell_that_ran_again_is_found(places: Locations, undisturbed: Locations) -> None:
    before = {CELLS[1].address.cell_key: datetime(2020, 1, 1)}
    (found,) = problems(places, undisturbed, before)
    assert "ran again" in found


@pytest.mark.parametrize("state", ["states/k", "trained/k.progress", "statistics/k/0.progress"])
def test_a_state_that_was_left_is_found(
    state: str, places: Locations, undisturbed: Locations
) -> None:
    Path(places.cache, state).mkdir(parents=True)
    (found,) = problems(places, undisturbed, {})
    assert "was not cleared" in found


def test_an_open_run_is_found(places: Locations, undisturbed: Locations) -> None:
    Tracker(places.tracking, "demo").start("left open")
    (found,) = problems(places, undisturbed, {})
    assert found == "MLflow: 1 runs were left RUNNING"


def test_a_cell_that_mlflow_lacks_is_found(places: Locations, undisturbed: Locations) -> None:
    lake, other = Lake(places.lake), Lake(undisturbed.lake)
    more = dataclasses.replace(cell(editor="mend", n_batches=2, batch_size=3))
    lake.commit(more)
    other.commit(more)
    try:
        (found,) = problems(places, undisturbed, {})
    finally:
        other.forget(more.address.cell_key)
    assert found == "MLflow: 1 cells were not, or not wholly, logged"
