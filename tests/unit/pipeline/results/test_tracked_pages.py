"""What MLflow's pages show of a cell, and lakes of several people on one tracking store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.results.lake.lake import Lake
from pipeline.results.tracking import logged_run
from pipeline.results.tracking.presentation import VIEW
from pipeline.results.tracking.tracker import Tracker
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


def test_an_experiment_opens_as_training_and_has_a_view_of_editors(uri: str) -> None:
    Tracker(uri, "demo")
    tags = MlflowClient(uri).get_experiment_by_name("demo").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert (
        "/runs?workflowType=machine_learning&viewStateShareKey=rleditcompare&compareRunsMode=CHART)"
        in tags["mlflow.note.content"]
    )
    view = json.loads(tags[VIEW])
    state = json.loads(view["state"])
    assert view["name"] == "Compare editors" and isinstance(view["createdAt"], int)
    shown = {chart.get("metricKey") for chart in state["compareRunCharts"]}
    assert {"efficacy_token_accuracy", "specificity_token_accuracy", "edit_ms"} <= shown
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
