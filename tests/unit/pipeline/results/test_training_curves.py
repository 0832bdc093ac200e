"""Learning curves of a trained cell: in the tracked run, and as a figure of the report."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipeline.results import figures
from pipeline.results.figures import FigureData, training
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellResult
from pipeline.results.query import connect
from pipeline.results.tracking.tracker import Tracker
from tests.unit.helpers.lake_fixtures import cell

CURVE = {
    "validation_efficacy": (50.0, 70.0, 90.0),
    "validation_generalization": (40.0, 60.0, 70.0),
    "validation_specificity_self": (90.0, 80.0, 60.0),
    "validation_score": (60.0, 70.0, 73.0),
    "validation_reward": (-9.0, -7.0, -8.0),
    "validation_eta_median": (1e-3, 2e-3, 2e-3),
}


def validated(**changes: Any) -> CellResult:
    """A cell that was validated before training and after two and four steps, the last the best."""
    result = cell(**changes)
    rows = [
        {"step": step, "metric": metric, "value": value}
        for metric, values in CURVE.items()
        for step, value in zip((0, 2, 4), values, strict=True)
    ]
    rows.append({"step": 4, "metric": "validation_best", "value": 73.0})
    return dataclasses.replace(result, steps=[*result.steps, *rows])


def pictures(lake: Lake) -> list[figures.Picture]:
    figure_data = FigureData(
        connection=connect(lake), grid="demo", scale="world", model="tiny-llama",
        dataset="world", protocol="token_accuracy", rows=[], style={},
    )  # fmt: skip
    return list(training.pictures(figure_data))


def words(svg: bytes) -> list[str]:
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def test_a_trained_cell_has_a_figure_with_a_panel_per_seed(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    for seed in (0, 1):
        lake.commit(validated(seed=seed))
    lake.commit(validated(editor="malmen"))
    lake.commit(cell(editor="mend"))
    found = {picture.title: picture for picture in pictures(lake)}
    assert list(found) == ["Training of malmen", "Training of rledit"]
    said = words(found["Training of rledit"].svg)
    assert "4×10, seed 0" in said and "4×10, seed 1" in said
    assert {"Eff", "Gen", "Spe (self)", "mean", "best", "training steps"} <= set(said)
    assert 300 < found["Training of malmen"].width < 1200


def test_the_best_state_is_marked_where_it_is(tmp_path: Path) -> None:
    """One star for each cell, and another picture where another state was the best."""
    rows = [
        {"n_batches": 4, "batch_size": 10, "seed": 0, **row}
        for row in validated().steps
        if str(row["metric"]).startswith("validation_")  # type: ignore[index]
    ]
    last = training.draw(rows)
    first = training.draw(
        [
            {**row, "step": 0, "value": 60.0} if row["metric"] == "validation_best" else row
            for row in rows
        ]
    )
    unmarked = training.draw([row for row in rows if row["metric"] != "validation_best"])
    assert len({last, first, unmarked}) == 3


def test_no_figure_without_points(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(cell())
    assert not pictures(lake)


def test_tracking_has_the_learning_curve_by_training_step(tmp_path: Path) -> None:
    lake, uri = Lake(str(tmp_path / "lake")), f"sqlite:///{tmp_path}/mlflow.db"
    lake.commit(validated())
    tracker = Tracker(uri, "demo")
    (record,) = lake.manifest()
    run = tracker.log_cell(tracker.start("run"), lake.result(record))
    client = MlflowClient(uri)
    for metric, values in CURVE.items():
        history = client.get_metric_history(run, metric)
        assert [(point.step, point.value) for point in history] == list(
            zip((0, 2, 4), values, strict=True)
        )
    assert [point.step for point in client.get_metric_history(run, "train_loss")] == list(range(60))
    assert not client.get_metric_history(run, "shift_norm")
    # The lake gives the same run again.
    assert tracker.rebuild(lake) == 0
