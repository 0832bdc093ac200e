"""Commands of the CLI: their help, their output, and their messages on mistakes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import app, cluster
from pipeline.cli.errors import errors_as_help
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cells import cells_of
from pipeline.results.lake.lake import Lake
from pipeline.results.tables import EDITOR_ORDER
from pipeline.results.tracking.tracker import Tracker
from pipeline.run.cache import Cache
from pipeline.run.cell import record_failure
from pipeline.storage.object_store import Storage
from pipeline.submit.ray_cluster import Job
from rledit.editors import EDITORS
from rledit.world import WORLD_MODELS, World, WorldConfig, world_model_key
from rledit.world.model import TRAINING_FILE
from tests.unit.helpers.lake_fixtures import address, cell, demo_cells

GRID = """\
name: small
models: [{name: m, world_model: tiny}]
datasets: [{name: world, world: {n_subjects: 60}}]
editors: [{editor: rledit}, {editor: ultraedit}, {editor: none}]
streams: [{n_batches: 2, batch_size: 2}]
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Commands set signal handlers; no other test meets them."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def typed(*words: Any) -> tuple[int, str]:
    """Exit code and what is read, as from a shell."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is None or isinstance(done.exception, SystemExit):
        return done.exit_code, done.output
    told = CliRunner().invoke(_raising(done.exception), [])
    return told.exit_code, done.output + told.output


def _raising(error: BaseException) -> Any:
    def main() -> None:
        with errors_as_help():
            raise error

    shell = typer.Typer(pretty_exceptions_enable=False)
    shell.command()(main)
    return shell


def lake_at(folder: Path, *results: Any) -> Lake:
    lake = Lake(str(folder / "lake"))
    for result in results:
        lake.commit(result)
    return lake


def test_the_version_is_the_one_that_results_carry() -> None:
    code, text = typed("--version")
    assert code == 0 and re.fullmatch(r"rledit \d+\.\d+\.\d+\+[0-9a-f]{12}\n", text)


# Order -------------------------------------------------------------------------------------------


def test_tables_list_methods_in_the_order_of_the_registry() -> None:
    """One that the order does not name yet follows, by its name."""
    assert tuple(name for name in EDITORS if name in EDITOR_ORDER) == EDITOR_ORDER


def test_run_and_table_print_the_same_lines(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grid lists its editors the other way round."""
    results = tmp_path / "results"
    editors = ("rledit", "ultraedit", "none")
    lake_at(results, *[cell(grid="small", model="m", editor=name) for name in editors])
    monkeypatch.setattr("pipeline.run.driver.run_plan", lambda *_: 0)
    ran = CliRunner().invoke(app, ["run", str(grid), "--results", str(results)])
    assert ran.exit_code == 0, ran.exception
    code, table = typed("table", "small", "--results", results)
    assert code == 0 and ran.stdout == table
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert rows[2:5] == ["unedited", "ultraedit", "rledit"]


# Names -------------------------------------------------------------------------------------------


def test_a_grid_without_results_is_answered_with_those_that_have_some(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, cell(), cell(grid="mine"))
    code, text = typed("table", "dmo", "--results", tmp_path)
    assert code == 2 and text.startswith(
        "error: no results of grid 'dmo'; did you mean 'demo'? Grids with results in "
        f"{lake.storage}: demo, mine. Published tables, shown without results too: table2"
    )
    code, text = typed("table", "demo", "--scale", "full", "--results", tmp_path)
    assert code == 2 and text.endswith("has no results at scale full; it has some at world\n")
    code, text = typed("table", "demo", "--format", "pdf", "--results", tmp_path)
    assert code == 2 and "--format pdf: unknown format; Valid: md, latex, html, csv" in text


def test_a_password_in_the_address_of_a_lake_is_not_printed(grid: Path, tmp_path: Path) -> None:
    lake = ["--results", tmp_path, "--lake", "memory://user:s3cretpass@bucket/lake"]
    told = {"table": typed("table", "z", *lake)[1], "plan": typed("plan", grid, *lake)[1]}
    assert "Grids with results in memory://***@bucket/lake: none" in told["table"]
    assert "to run; lake memory://***@bucket/lake\n" in told["plan"]
    assert "s3cretpass" not in str(told)


def test_a_report_goes_to_a_store_and_a_results_folder_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lake_at(tmp_path / "r", *demo_cells(seeds=1, streams=(4,)))
    code, text = typed(
        "report", "demo", "--results", "r", "--out", "memory://u:s3cretpass@pages/demo.html"
    )
    assert (code, text) == (0, "memory://***@pages/demo.html\n")
    written = Storage("memory://u:s3cretpass@pages").list()
    assert "demo.html" in written and any(n.startswith("demo-figures/") for n in written)
    told = "error: --results s3://***@b/res: expected a folder of this machine"
    for words in (["table", "demo"], ["mlflow"]):
        code, text = typed(*words, "--results", "s3://u:s3cretpass@b/res")
        assert code == 2 and told in text
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("action", ["export", "import"])
def test_key_covariance_is_shared_out_of_the_cache_that_is_named(
    action: str, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shared(_: Any, cache: Cache, folder: Path) -> list[str]:
        return [str(cache.folder)]

    monkeypatch.setattr(f"pipeline.run.shared_covariance.{action}_covariance", shared)
    code, text = typed("covariance", action, grid, tmp_path / "f", "--cache", tmp_path / "c")
    assert code == 0 and text.splitlines()[0] == str(tmp_path / "c")


def test_diff_of_one_grid(tmp_path: Path) -> None:
    lake_at(tmp_path / "a", cell(), cell(grid="mine"))
    lake_at(tmp_path / "b", cell(), cell(grid="mine", noise=1), cell(grid="theirs"))
    lakes = [tmp_path / name / "lake" for name in "ab"]
    assert typed("diff", *lakes)[0] == 1
    code, text = typed("diff", *lakes, "--grid", "demo")
    assert code == 0 and "bitwise for 1 cells" in text and text.endswith("equal\n")
    assert typed("diff", *lakes, "--grid", "mine")[0] == 1
    code, text = typed("diff", *lakes, "--grid", "theirs")
    assert code == 1 and "A (" in text and "has no finished cell of grid 'theirs'" in text
    code, text = typed("diff", *lakes, "--grid", "dmo")
    assert code == 2
    assert "neither lake has a cell of grid 'dmo'; did you mean 'demo'? Grids: A (" in text
    assert text.endswith("has demo, mine, theirs\n")


def test_status_says_where_it_looked(tmp_path: Path) -> None:
    code, text = typed("status", "--results", tmp_path)
    assert code == 0 and text.startswith(f"no grid in {tmp_path}/lake or sqlite:///{tmp_path}")
    lake_at(tmp_path, cell())
    code, text = typed("status", "dmo", "--results", tmp_path)
    assert code == 2
    assert text.startswith("error: no grid 'dmo' in ") and text.endswith("; there are demo\n")


def test_rebuild_makes_no_experiment_of_a_grid_that_is_not_there(tmp_path: Path) -> None:
    code, text = typed("rebuild", "--results", tmp_path)
    assert code == 2 and text.endswith(
        "no cells of grid any in " + f"{tmp_path}/lake; grids there: none\n"
    )
    lake_at(tmp_path, cell())
    code, text = typed("rebuild", "dmo", "--results", tmp_path)
    assert code == 2 and "no cells of grid dmo in " in text and text.endswith("there: demo\n")
    assert not (tmp_path / "mlflow.db").exists()


# Plan --------------------------------------------------------------------------------------------


def test_why_cells_are_left_out_is_said_without_the_cells_too(grid: Path, tmp_path: Path) -> None:
    fever = "datasets=[{name: fever, schema: fever, world: {n_subjects: 60, claims: true}}]"
    sets = ("--set", fever, "--set", "editors=[{editor: none}, {editor: memit}]")
    plain = (grid, *sets, "--results", tmp_path)
    none = cells_of(load_grid(grid, [sets[1], sets[3]]))[0]
    record_failure(none, Lake(str(tmp_path / "lake")), "OutOfMemoryError: 3 GB")
    listed, short = typed("plan", *plain)[1], typed("plan", *plain, "--no-cells")[1]
    reason = "memit looks up subjects, and fever gives none"
    assert f"({reason})" in listed and "(OutOfMemoryError: 3 GB)" in listed
    assert f"skipped: {reason}\n" in short and "\nskipped " not in short
    assert "failed before, 1 of the cells to run: OutOfMemoryError: 3 GB\n" in short


def test_what_lies_in_the_cache_is_not_reckoned_again(grid: Path, tmp_path: Path) -> None:
    """A model of the synthetic world that another run has trained."""
    plan = ("plan", grid, "--no-cells", "--results", tmp_path / "r", "--cache", tmp_path / "c")
    first = typed(*plan)[1]
    assert "needs: m: trained on the spot" in first
    world = World(WorldConfig(n_subjects=60))
    made = tmp_path / "c" / "models" / world_model_key(world, WORLD_MODELS["tiny"])
    made.mkdir(parents=True)
    (made / TRAINING_FILE).write_text("{}")
    second = typed(*plan)[1]
    assert "needs: m: trained before, and in the cache" in second
    assert _hours(second) < _hours(first)
    elsewhere = typed("plan", grid, "--no-cells", "--results", tmp_path / "r")[1]
    assert elsewhere == first


def _hours(text: str) -> float:
    found = re.search(r"total: ([\d.e-]+) core-hours", text)
    assert found is not None, text
    return float(found[1])


# Places ------------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_results_folder(grid: Path, tmp_path: Path) -> None:
    taken = tmp_path / "results"
    taken.write_text("")
    for words in (
        ("report", "demo", "--lake", str(lake_at(tmp_path, cell()).storage), "--results", taken),
        ("run", grid, "--results", taken, "--set", "editors=[{editor: none}]"),
    ):
        code, text = typed(*words)
        assert code == 2 and "Traceback" not in text
        assert "a file stands where a folder is needed: choose another place" in text, text


def test_what_the_system_refuses_is_a_message_with_its_place() -> None:
    told = CliRunner().invoke(_raising(PermissionError(13, "Permission denied", "/srv/lake")), [])
    assert told.exit_code == 2
    assert told.output.startswith("error: /srv/lake: Permission denied; you may not write or read")


# Ctrl-C ------------------------------------------------------------------------------------------


def test_ctrl_c_says_how_to_go_on_and_exits_as_shells_expect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(SystemExit) as ended, errors_as_help():
        os.kill(os.getpid(), signal.SIGINT)
    assert ended.value.code == 130
    assert "interrupted; nothing is half-written" in capsys.readouterr().err


PREPARING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import pipeline.plan.preflight
def checked(plan):
    try:
        print("preparing", flush=True)
        time.sleep(60)
    finally:
        if {slow}:
            print("closing", flush=True)
            time.sleep(60)
pipeline.plan.preflight.checked = checked
sys.argv = ["rledit", "run", {grid!r}, "--results", {results!r}]
from pipeline.cli import main
main()
"""


@pytest.mark.long
@pytest.mark.parametrize("slow", [False, True])
def test_ctrl_c_while_the_run_is_prepared(grid: Path, tmp_path: Path, slow: bool) -> None:
    """Once it says what is kept; twice it does not wait for what is being closed."""
    script = PREPARING.format(slow=slow, grid=str(grid), results=str(tmp_path / "r"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "preparing\n"
        process.send_signal(signal.SIGINT)
        if slow:
            assert process.stdout.readline() == "closing\n"
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    if slow:
        assert "left at once; finished cells are kept, and the same command goes on" in said
    else:
        assert f"interrupted; 0 of 3 cells are done and kept in {tmp_path}/r/lake." in said
        assert (
            f"kept in {tmp_path}/r/cache; what has saved no state begins again\ngo on with: "
            in said
        )


# Jobs --------------------------------------------------------------------------------------------


def test_cancel_says_that_it_ended_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver closes its own run, or is killed before it can."""
    lake = lake_at(tmp_path, *demo_cells(seeds=1, streams=(4,)))
    lake.record_failure(address(editor="ft", variant="big"), "x", identity={}, code_version="1")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    metadata = {"grid": "demo", "lake": str(lake.storage), "tracking": uri}
    states = ["RUNNING", "STOPPED"]

    def job(name: str) -> Job:
        return Job(name=name, status=states[0], metadata=metadata)

    def stop(_: str) -> None:
        states.pop(0)

    server = SimpleNamespace(job=job, stop=stop, session=lambda: "s", wait=lambda n, *_: job(n))
    monkeypatch.setattr(cluster, "_server", lambda _: server)
    tracker = Tracker(uri, "demo")
    tracker.finish(tracker.start("run demo"), "KILLED")
    code, text = typed("cancel", "demo-1")
    assert code == 0 and text.splitlines() == [
        "demo-1: STOPPED, the job ended",
        "  cells: 7 done, 1 failed; submitting the grid again goes on from here",
        "tracking: the job's run is closed by its driver",
    ]
    tracker.start("run demo", {"submission_id": "demo-1", "ray_session": "s"})
    code, text = typed("cancel", "demo-1")
    assert "demo-1: STOPPED (it had ended before)" in text
    assert text.endswith("tracking: the job's run is closed here\n")
    assert "0 runs" not in text


COMMANDS: list[Any] = list(vars(typer.main.get_command(app))["commands"].values())
DEMO = str(Path(__file__).parents[4] / "jobs" / "grids" / "demo.yaml")
PLACES = ["--lake", "/nowhere/lake", "--cache", "/nowhere/cache"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", DEMO, "--judge-model", "m"], "--judge-model: no judge is asked; .*--judge"),
        (["run", DEMO, "--judge-per-minute", "3", "--judge-parallel", "2"], "minute, --judge-par"),
        (["run", DEMO, "--workers", "2", "--address", "auto"], "--workers: --address runs on all"),
        (["submit", DEMO, *PLACES, "--gpus", "1", "--kind", "job"], "--kind, --gpus: .*kuberay"),
        (["submit", DEMO, *PLACES, "--backend", "kuberay", "--wait", "3"], "--wait: .*a manifest"),
        (["export", "0123", "/nowhere/x", "--model", "m"], "--model: a cell's model is its grid's"),
        (["export", "0123", "/nowhere/x", "--rank", "2"], "--rank: only an adapter has a rank"),
        (["status", "--log", "4"], "--log: .*--address"),
        (["status", "--address", "http://127.0.0.1:1", "--results", "x"], "--results: .*--lake"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RLEDIT_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=told):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize("name", sorted(c.name or "" for c in COMMANDS if not c.hidden))
def test_no_word_of_the_help_is_cut_off_in_a_narrow_terminal(name: str) -> None:
    text = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).output
    assert "--help" in text and re.findall(r"\S+…", text) == []
