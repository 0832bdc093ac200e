"""MLflow as a view of the lake: complete, repeatable, and without secrets."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellRecord, CellResult
from pipeline.results.tracking.experiment import tracked
from pipeline.results.tracking.liveness import process_alive
from pipeline.results.tracking.logged_run import flatten
from pipeline.results.tracking.tracker import Tracker
from pipeline.results.tracking.uri import TrackingError, sqlite_path
from pipeline.storage.run_paths import RunPaths
from tests.unit.helpers.lake_fixtures import address, cell

PLANTED = "planted-secret-value"
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the schema and nothing else: creating one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "fresh.db"
    Tracker(f"sqlite:///{path}", "empty")
    return path


@pytest.fixture
def uri(fresh_database: Path, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "mlflow.db"
    shutil.copy(fresh_database, path)
    yield f"sqlite:///{path}"


def runs_of(uri: str, grid: str = "demo", condition: str = "tags.kind = 'cell'") -> list[Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(grid)
    return list(client.search_runs([experiment.experiment_id], condition))


def test_a_cell_is_a_child_run_with_everything(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    parent = tracker.start("first", tags={"submission_id": "job-7"})
    result = dataclasses.replace(cell(), resolved={"a": {"b": 1e-6, "c": None}, "long": "x" * 9000})
    run_id = tracker.log_cell(parent, result)
    tracker.finish(parent)
    (run,) = runs_of(uri)
    assert run.info.run_id == run_id and run.info.status == "FINISHED"
    expected = {
        "invocation": parent, "grid": "demo", "cell": result.address.cell_key,
        "editor": "rledit", "variant": "", "model": "tiny-llama", "dataset": "world",
        "scale": "world", "status": "done", "data_hash": "d" * 12,
        "code_version": "0.1.0+abc1234", "prompt": "bare",
        "protocols": "exact_match,token_accuracy",
    }  # fmt: skip
    assert expected.items() <= run.data.tags.items()
    long = run.data.params.pop("long")
    assert len(long) < 6000 and long.startswith("xxx")
    stream = {"seed": "0", "batch_size": "10", "n_batches": "4"}
    assert run.data.params == {"a.b": "1e-06", "a.c": "null", **stream}
    final = {row["protocol"]: row for row in result.scores if row["final"]}
    for protocol, row in final.items():
        for score in ("efficacy", "generalization", "specificity", "specificity_self"):
            assert run.data.metrics[f"{score}_{protocol}"] == row[score]
    history = MlflowClient(uri).get_metric_history(run_id, "efficacy_exact_match")
    assert [point.step for point in history] == [20, 40]
    assert {name: run.data.metrics[name] for name in ("train_seconds", "edit_ms", "n_edits")} == {
        "train_seconds": 52.0, "edit_ms": 1.7, "n_edits": 40.0}  # fmt: skip
    (invocation,) = runs_of(uri, condition="tags.kind = 'invocation'")
    assert invocation.info.status == "FINISHED"
    assert invocation.data.tags["submission_id"] == "job-7"


def test_logging_again_changes_nothing_and_other_content_supersedes(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    parent = tracker.start("run")
    first = tracker.log_cell(parent, cell())
    assert tracker.log_cell(parent, cell()) == first
    assert Tracker(uri, "demo").log_cell(tracker.start("again"), cell()) == first
    other = tracker.log_cell(parent, cell(noise=1))
    assert other != first
    assert [run.info.run_id for run in runs_of(uri)] == [other]


def test_a_run_that_a_crash_cut_short_is_superseded(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(uri, "demo")
    parent = tracker.start("run")
    with monkeypatch.context() as patched:

        def crash(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(MlflowClient, "set_terminated", crash)
        with pytest.raises(KeyboardInterrupt):
            tracker.log_cell(parent, cell())
    tracker.log_cell(parent, cell())
    assert [run.info.status for run in runs_of(uri)] == ["FINISHED"]


def test_a_failure_is_a_failed_run_until_a_success(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    parent = tracker.start("run")
    bad = CellResult(
        address=address(), status="failed", reason="no memory", identity={}, code_version="1"
    )
    tracker.log_cell(parent, bad)
    (run,) = runs_of(uri)
    assert (run.info.status, run.data.tags["status"], run.data.tags["reason"]) == (
        "FAILED", "failed", "no memory")  # fmt: skip
    assert run.data.metrics == {}
    tracker.log_cell(parent, cell())
    assert [run.data.tags["status"] for run in runs_of(uri)] == ["done"]


def test_many_metrics_and_params_fit_the_batch_limits(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    rows = [
        {"checkpoint": i, "n_edits": i, "final": i == 699, "protocol": "choice", "efficacy": i / 7,
         "n_scored": i, "n_superseded": 0}
        for i in range(1, 700)
    ]  # fmt: skip
    wide = [dict(row, generalization=1.0, specificity=2.0) for row in rows]
    settings = {f"p{i}": i for i in range(333)}
    result = dataclasses.replace(cell(), scores=wide, resolved=settings)
    run_id = tracker.log_cell(tracker.start("run"), result)
    (run,) = runs_of(uri)
    assert len(run.data.params) == 336
    assert len(MlflowClient(uri).get_metric_history(run_id, "specificity_choice")) == 699
    assert run.data.metrics["efficacy_choice"] == 699 / 7


def test_protocol_names_are_told_from_metric_names(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    rows = [dict(row, protocol="self_check") for row in cell(protocols=("x",)).scores]
    tracker.log_cell(tracker.start("run"), dataclasses.replace(cell(), scores=rows))
    (run,) = runs_of(uri)
    assert run.data.tags["protocols"] == "self_check"
    (last,) = [row for row in rows if row["final"]]
    assert run.data.metrics["specificity_self_check"] == last["specificity"]
    assert run.data.metrics["specificity_self_self_check"] == last["specificity_self"]


def test_rebuild_makes_the_runs_equal_to_the_lake(uri: str, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    tracker = Tracker(uri, "demo")
    parent = tracker.start("run")
    tracker.log_cell(parent, cell(seed=5))
    tracker.log_cell(parent, cell())
    for result in (cell(), cell(seed=1), cell(grid="other")):
        lake.commit(result)
    lake.record_failure(address(seed=2), "x", identity={}, code_version="1")
    assert tracker.rebuild(lake) == 2
    assert tracker.rebuild(lake) == 0
    assert sorted(run.data.params["seed"] for run in runs_of(uri)) == ["0", "1", "2"]
    lake.commit(cell(noise=1))
    assert tracker.rebuild(lake) == 1
    assert not [run for run in runs_of(uri, condition="") if run.info.status == "RUNNING"
                and run.info.run_id != parent]  # fmt: skip


def test_rebuild_leaves_what_another_invocation_logs_meanwhile(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    tracker, other = Tracker(uri, "demo"), Tracker(uri, "demo")
    lake.commit(cell())
    parent, manifest = other.start("another"), Lake.manifest

    def overtaken(self: Lake, grid: str | None = None) -> list[CellRecord]:
        found = manifest(self, grid)
        lake.commit(cell(seed=1))
        other.log_cell(parent, cell(seed=1))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "manifest", overtaken)
        tracker.rebuild(lake)
    assert sorted(run.data.params["seed"] for run in runs_of(uri)) == ["0", "1"]


@pytest.mark.long
def test_the_sweep_ends_runs_of_dead_invocations(uri: str) -> None:
    script = (
        "import sys; from pipeline.results.tracking.tracker import Tracker\n"
        "print(Tracker(sys.argv[1], 'demo').start('killed'))"
    )
    dead = subprocess.run(
        [sys.executable, "-c", script, uri],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parents[4],
    ).stdout.split()[-1]  # fmt: skip
    tracker = Tracker(uri, "demo")
    mine = tracker.start("mine")
    child = tracker._client.create_run(
        tracker._experiment_id, tags={"mlflow.parentRunId": dead, "kind": "cell"}
    ).info.run_id
    assert sorted(tracker.close_stale_runs()) == sorted([dead, child])
    status = {run.info.run_id: run.info.status for run in runs_of(uri, condition="")}
    assert status == {dead: "KILLED", child: "KILLED", mine: "RUNNING"}
    assert tracker.close_stale_runs(lambda tags: tags["host"] == "") == [mine]


def test_process_alive_knows_this_process_from_a_reused_number() -> None:
    tags = {"host": os.uname().nodename, "pid": str(os.getpid())}
    assert process_alive(tags)
    assert not process_alive(tags | {"process_started": "1"})


def test_an_invocation_elsewhere_that_never_gave_a_sign_is_judged_by_its_start(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    long_ago, now = (int(t.timestamp() * 1000) for t in (datetime.now() - HOUR, datetime.now()))
    there = {"kind": "invocation", "host": "another-host", "pid": "1"}
    old, new = (
        tracker._client.create_run(tracker._experiment_id, start_time=t, tags=there).info.run_id
        for t in (long_ago, now)
    )
    assert tracker.close_stale_runs() == [old]
    assert [i.run_id for i in tracker.invocations() if i.status == "RUNNING"] == [new]


def test_no_secret_reaches_the_store(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    tracker = Tracker(uri, "demo")
    parent = tracker.start("run", tags={"address": f"http://me:{PLANTED}@head:8265"})
    settings = {"store": f"postgresql://me:{PLANTED}@db/x", "hub_token": "other-secret"}
    tracker.log_cell(parent, dataclasses.replace(cell(), resolved=settings, reason=PLANTED))
    database = sqlite3.connect(uri.removeprefix("sqlite:///"))
    dump = "\n".join(database.iterdump())
    database.close()
    assert "postgresql://***@db/x" in dump
    assert PLANTED not in dump and "other-secret" not in dump


def test_a_database_without_its_driver_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(TrackingError) as told:
        Tracker("postgresql+psycopg2://u:s3cretpass@localhost/x", "demo")
    assert str(told.value).endswith("pip install psycopg2-binary")
    assert "postgresql+psycopg2://***@localhost/x: the driver" in str(told.value)


@pytest.mark.parametrize("name", ["A 50%25", "A?x", "A#1", "Aü"])
def test_a_results_folder_may_have_any_name(
    fresh_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = RunPaths.under(tmp_path / name).tracking
    database = tmp_path / name / "mlflow.db"
    database.parent.mkdir()
    shutil.copy(fresh_database, database)
    Tracker(uri, "demo").start("run")
    assert sqlite_path(uri) == database and [one.grid for one in tracked(uri)] == ["demo"]


def test_who_only_looks_writes_nothing(uri: str, tmp_path: Path) -> None:
    Tracker(uri, "demo").start("run")
    absent = tmp_path / "no such" / "folder"
    assert tracked(f"sqlite:///{absent}/mlflow.db") == [] and not absent.parent.exists()
    lock = tmp_path / ".mlflow.db.lock"
    lock.unlink()
    lock.mkdir()  # as where it may not be written: it cannot be opened
    assert [one.grid for one in tracked(uri)] == ["demo"]
    with pytest.raises(TrackingError, match="cannot be made there .*--results"):
        Tracker(f"{uri}/below/mlflow.db", "demo")


@pytest.mark.parametrize("bad", ["results/mlruns", "file:///x/mlruns", "./mlruns"])
def test_a_file_store_is_refused_with_the_remedy(bad: str) -> None:
    with pytest.raises(TrackingError, match=r"file store.*sqlite:///"):
        Tracker(bad, "demo")


def test_an_unreachable_store_hides_its_password() -> None:
    with pytest.raises(TrackingError) as caught:
        Tracker(f"nosuchdb://me:{PLANTED}@host/db", "demo")
    assert PLANTED not in str(caught.value)


def test_a_store_that_fails_later_hides_its_password(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(uri, "demo")

    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException(f"postgresql://me:{PLANTED}@host/db is gone")

    monkeypatch.setattr(tracker._client, "search_runs", fail)
    for ask in (tracker.close_stale_runs, tracker.invocations):
        with pytest.raises(TrackingError) as caught:
            ask()
        assert PLANTED not in str(caught.value)


@pytest.mark.parametrize("users", [None, "sqlite:///users.db"])
def test_tracking_leaves_the_environment_as_it_was(
    users: str | None, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "put back after the test")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    if users:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", users)
    Tracker(uri, "demo").finish(Tracker(uri, "demo").start("run"))
    left = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(None)
    assert left == users


def test_finish_takes_endings_only(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    with pytest.raises(ValueError, match="FINISHED, FAILED, KILLED"):
        tracker.finish(tracker.start("run"), "DONE")


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": True}, "d": [1, {"e": 2}]}, "f": "x"}) == {
        "a.b.c": "true", "a.d": '[1, {"e": 2}]', "f": "x"}  # fmt: skip
