"""What MLflow's pages show of a cell, and lakes of several people on one tracking store."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.results.figures.style import LOOKS
from pipeline.results.lake.lake import Lake
from pipeline.results.tracking import logged_run
from pipeline.results.tracking.experiment import tracked
from pipeline.results.tracking.pages_server import HOST, check_port, chosen, page_lines
from pipeline.results.tracking.tracker import Tracker
from pipeline.results.tracking.uri import TrackingError
from pipeline.storage.run_paths import RunPaths
from pipeline.submit.reconcile import close_stale_grids
from pipeline.submit.status import grids_lines
from tests.unit.helpers.lake_fixtures import cell


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "fresh.db"
    Tracker(f"sqlite:///{path}", "empty")
    return path


@pytest.fixture
def uri(fresh_database: Path, tmp_path: Path) -> str:
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def cells_of(client: MlflowClient, experiment_id: str) -> list[Any]:
    return list(client.search_runs([experiment_id], "tags.kind = 'cell'"))


def test_an_experiment_opens_as_training_and_has_views_of_scores_and_editors(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    tracker.log_cell(tracker.start("run"), cell(protocols=("exact_match",)))
    tags = MlflowClient(uri).get_experiment_by_name("demo").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert (
        "/runs?workflowType=machine_learning&viewStateShareKey=rleditcompare&compareRunsMode=CHART)"
        in tags["mlflow.note.content"]
    )
    scores, view = (json.loads(tags[f"mlflow.sharedViewState.rledit{name}"])
                    for name in ("scores", "compare"))  # fmt: skip
    assert (scores["name"], view["name"]) == ("Scores", "Compare editors")
    assert isinstance(view["createdAt"], int)
    assert "metrics.`efficacy_exact_match`" in json.loads(scores["state"])["selectedColumns"]
    # A run's own protocols are shown: the first of them in the order of tables.
    state = json.loads(view["state"])
    assert all(c["lineSmoothness"] == 0 for c in state["compareRunCharts"] if c["type"] == "LINE")
    shown = {chart.get("metricKey") for chart in state["compareRunCharts"]}
    assert {"efficacy_exact_match", "specificity_exact_match", "edit_ms"} <= shown
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(
        state["compareRunCharts"]
    )
    assert {c["metricSectionId"] for c in state["compareRunCharts"]} == {
        section["uuid"] for section in state["compareRunSections"]
    }


def test_a_run_says_what_it_is_and_where_it_comes_from(uri: str) -> None:
    tracker = Tracker(uri, "demo", code="0.1.0+abc1234")
    run_id = tracker.log_cell(tracker.start("run"), cell())
    run = MlflowClient(uri).get_run(run_id)
    tags = run.data.tags
    assert "mlflow.parentRunId" not in tags  # found without unfolding
    note = tags["mlflow.note.content"]
    final = next(r for r in cell().scores if r["final"] and r["protocol"] == "token_accuracy")
    assert f"| token_accuracy | {final['efficacy']:.1f} |" in note
    assert f"rledit export {tags['cell']}" in note
    assert tags["mlflow.runColor"] == LOOKS["rledit"][0]  # as in the report's figures
    assert tags["mlflow.source.type"] == "LOCAL" and tags["mlflow.user"]
    assert len(tags.get("mlflow.source.git.commit", "0" * 40)) == 40
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("world", "d" * 12)
    assert json.loads(given.dataset.source)["sha256"] == "d" * 12
    # The commit is that of the code that runs: another code's cell does not have it.
    other = Tracker(uri, "later", code="0.2.0")
    tags = MlflowClient(uri).get_run(other.log_cell(other.start("run"), cell())).data.tags
    assert "mlflow.source.git.commit" not in tags


def test_curves_are_curves_and_numbers_are_numbers(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    result = cell()
    run_id = tracker.log_cell(tracker.start("run"), result)
    client = MlflowClient(uri)
    for name in client.get_run(run_id).data.metrics:
        steps = [point.step for point in client.get_metric_history(run_id, name)]
        assert len(steps) > 1 or steps == [0], name
    kept = {p.step: p.value for p in client.get_metric_history(run_id, "retention_exact_match")}
    last = max(row["checkpoint"] for row in result.edits)
    newest = [
        row["efficacy"]
        for row in result.edits
        if (row["checkpoint"], row["protocol"], row["superseded"]) == (last, "exact_match", False)
        and row["batch_index"] == 3
    ]
    assert sorted(kept) == [0, 10, 20, 30]
    assert kept[0] == pytest.approx(sum(newest) / len(newest))


def test_a_sign_of_life_has_the_load_of_the_machine(uri: str) -> None:
    tracker = Tracker(uri, "demo")
    parent = tracker.start("run")
    tracker.beat(parent, {"cells": 3}, 15)
    metrics = MlflowClient(uri).get_run(parent).data.metrics
    assert metrics["cells"] == 3 and metrics["system/system_memory_usage_megabytes"] > 1


def test_the_report_is_kept_with_the_newest_invocation(uri: str, tmp_path: Path) -> None:
    (tmp_path / "demo.html").write_text("<p>it</p>")
    tracker = Tracker(uri, "demo")
    parent = tracker.start("run")
    assert tracker.log_report([tmp_path / "demo.html"]) == parent
    kept = [file.path for file in MlflowClient(uri).list_artifacts(parent, "report")]
    assert kept == ["report/demo.html"]


def test_lakes_on_one_store_leave_each_others_runs_alone(uri: str, tmp_path: Path) -> None:
    mine, theirs = Lake(str(tmp_path / "a" / "lake")), Lake(str(tmp_path / "b" / "lake"))
    mine.commit(cell())
    theirs.commit(cell(noise=1))
    theirs.commit(cell(seed=1))
    first, second = Tracker(uri, "demo", mine), Tracker(uri, "demo", theirs)
    assert (first.rebuild(mine), second.rebuild(theirs)) == (1, 2)
    assert (first.rebuild(mine), second.rebuild(theirs)) == (0, 0)
    client = MlflowClient(uri)
    names = {e.experiment_id: e.name for e in client.search_experiments()}
    assert names[first._experiment_id] == "demo"
    assert names[second._experiment_id].startswith("demo (")
    assert len(cells_of(client, first._experiment_id)) == 1
    assert len(cells_of(client, second._experiment_id)) == 2
    # Asked again, each finds its own.
    assert Tracker(uri, "demo", theirs)._experiment_id == second._experiment_id
    assert Tracker(uri, "demo", mine)._experiment_id == first._experiment_id


def test_a_moved_lake_keeps_its_experiment_and_a_copy_has_another(uri: str, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "one" / "lake"))
    lake.commit(cell())
    before = Tracker(uri, "demo", lake)._experiment_id
    shutil.move(tmp_path / "one", tmp_path / "moved")
    assert Tracker(uri, "demo", Lake(str(tmp_path / "moved" / "lake")))._experiment_id == before
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    copied = Tracker(uri, "demo", Lake(str(tmp_path / "copy" / "lake")))._experiment_id
    assert copied != before


def test_a_lake_and_its_database_are_copied_together(uri: str, tmp_path: Path) -> None:
    """The copy's runs, artifacts and experiment are its own; the original's stay as they are."""
    made, copy = tmp_path / "made", tmp_path / "copy"
    made.mkdir()
    shutil.move(uri.removeprefix("sqlite:///"), made / "mlflow.db")
    lake = Lake(str(made / "lake"))
    rows = [
        {"checkpoint": n, "edit_index": 1, "edit_id": "f", "probe": "edit", "probe_index": 0,
         "prompt": "p", "target": "t", "answer": "t", "tokens": [1], "target_logprob": -1.0,
         "is_target": True, "has_target": True, "superseded": False}
        for n in (0, 40)
    ]  # fmt: skip
    lake.commit(dataclasses.replace(cell(), answers=rows))
    first = Tracker(f"sqlite:///{made / 'mlflow.db'}", "demo", lake)
    assert first.rebuild(lake) == 1
    before = sorted(str(p) for p in (made / "artifacts").rglob("*"))
    assert any(name.endswith("answers.json") for name in before)
    shutil.copytree(made, copy)

    there = Lake(str(copy / "lake"))
    there.commit(dataclasses.replace(cell(seed=1), answers=rows))
    again = Tracker(f"sqlite:///{copy / 'mlflow.db'}", "demo", there)
    assert again.rebuild(there) == 1, "what was copied is logged already"
    client = MlflowClient(f"sqlite:///{copy / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name.startswith("demo"))
    assert experiment.name == "demo"
    assert experiment.artifact_location == (copy / "artifacts").as_uri()
    places = [run.info.artifact_uri for run in client.search_runs([experiment.experiment_id])]
    assert places and all(place.startswith(copy.as_uri()) for place in places)
    (tmp_path / "report.html").write_text("<p>it</p>")
    again.log_report([tmp_path / "report.html"])
    assert list((copy / "artifacts").rglob("report.html"))
    assert sorted(str(p) for p in (made / "artifacts").rglob("*")) == before
    # The original still knows its own.
    assert Tracker(f"sqlite:///{made / 'mlflow.db'}", "demo", lake).rebuild(lake) == 0


def test_a_database_that_was_copied_alone_reads_where_its_artifacts_are(
    uri: str, tmp_path: Path
) -> None:
    (tmp_path / "demo.html").write_text("<p>it</p>")
    tracker = Tracker(uri, "demo")
    run_id = tracker.start("run")
    tracker.log_report([tmp_path / "demo.html"])
    (tmp_path / "alone").mkdir()
    shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "alone" / "mlflow.db")
    alone = f"sqlite:///{tmp_path / 'alone' / 'mlflow.db'}"
    later = Tracker(alone, "demo").start("later")
    client = MlflowClient(alone)
    assert [f.path for f in client.list_artifacts(run_id, "report")] == ["report/demo.html"]
    assert client.get_run(run_id).info.artifact_uri.startswith((tmp_path / "artifacts").as_uri())
    assert client.get_run(later).info.artifact_uri.startswith((tmp_path / "alone").as_uri())


def test_who_only_looks_makes_no_experiment(uri: str, tmp_path: Path) -> None:
    mine, theirs = Lake(str(tmp_path / "a" / "lake")), Lake(str(tmp_path / "b" / "lake"))
    for lake, result in ((mine, cell()), (theirs, cell(noise=1)), (theirs, cell(grid="other"))):
        lake.commit(result)
        Tracker(uri, result.address.grid, lake).rebuild(lake)
    before = {e.name: e.tags for e in MlflowClient(uri).search_experiments()}
    paths = RunPaths(lake=str(mine.storage), tracking=uri, cache=str(tmp_path / "cache"))
    lines = list(grids_lines(paths))
    (second,) = (name for name in before if name.startswith("demo ("))
    assert lines == [
        "demo", "  cells: 1 done, 0 failed", "  tracking: rebuild FINISHED",
        f"{second} (of another lake)", "  tracking: rebuild FINISHED",
        "other (of another lake)", "  tracking: rebuild FINISHED",
    ]  # fmt: skip
    swept = [str(one) for one in close_stale_grids(uri, ["demo"])]
    assert swept == ["demo: no run was left open", f"{second}: no run was left open"]
    assert {e.name: e.tags for e in MlflowClient(uri).search_experiments()} == before


def test_a_store_that_is_away_leaves_the_lake_to_tell(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(cell())
    (tmp_path / "mlflow.db").write_text("this is no database, and long enough to be seen as none")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    lines = list(grids_lines(RunPaths(lake=str(lake.storage), tracking=uri, cache="c")))
    assert lines[:2] == ["demo", "  cells: 1 done, 0 failed"]
    assert "cannot open the tracking store" in lines[2] and len(lines) == 3


def test_addresses_open_the_pages_of_model_training(uri: str) -> None:
    Tracker(uri, "demo").start("run")
    (one,) = chosen(uri, tracked(uri), "demo")
    lines = list(page_lines("https://me:secret@host/team/", [one]))
    start = f"https://host/team/#/experiments/{one.experiment_id}/runs?workflowType="
    assert lines == [
        f"demo: {start}machine_learning&viewStateShareKey=rleditscores",
        f"  editors side by side: {start}machine_learning&viewStateShareKey=rleditcompare"
        "&compareRunsMode=CHART",
    ]
    with pytest.raises(TrackingError, match="'dmo'; did you mean 'demo'. Grids there: demo"):
        chosen(uri, [one], "dmo")
    with pytest.raises(TrackingError, match="there are no tracked runs; run a grid first"):
        chosen(uri, [], None)
    with (
        socket.create_server((HOST, 0)) as busy,
        pytest.raises(TrackingError, match="name another with --port"),
    ):
        check_port(busy.getsockname()[1])


@pytest.mark.long
def test_the_command_serves_the_pages_it_names(uri: str) -> None:
    Tracker(uri, "demo").start("run")
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipeline.cli", "mlflow", "--port", str(port)]
    with subprocess.Popen([*command, "--tracking", uri], stdout=subprocess.PIPE, text=True) as told:
        try:
            assert told.stdout is not None
            line = told.stdout.readline()
            experiment_id = line.partition("/experiments/")[2].partition("/")[0]
            asked = f"http://{HOST}:{port}/ajax-api/2.0/mlflow/experiments/get?experiment_id="
            for _ in range(240):
                try:
                    with urllib.request.urlopen(asked + experiment_id, timeout=30) as answer:
                        found = json.load(answer)["experiment"]
                    break
                except OSError:
                    time.sleep(0.5)
            assert line.startswith(f"demo: http://{HOST}:{port}/#") and found["name"] == "demo"
        finally:
            told.terminate()


def test_runs_of_an_earlier_form_are_logged_anew(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(cell())
    tracker = Tracker(uri, "demo", lake)
    with monkeypatch.context() as before:
        before.setattr(logged_run, "_FORM", 1)
        assert tracker.rebuild(lake) == 1
    (old,) = cells_of(MlflowClient(uri), tracker._experiment_id)
    assert tracker.rebuild(lake) == 1
    (run,) = cells_of(MlflowClient(uri), tracker._experiment_id)
    assert run.info.run_id != old.info.run_id
