"""Learning curves of a trained cell: in the tracked run, and as a figure of the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipeline.results import figures
from pipeline.results.figures import FigureData, optimiser_steps, training
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellResult
from pipeline.results.query import connect
from pipeline.results.tracking.tracker import Tracker
from tests.unit.helpers.lake_fixtures import cell
from tests.unit.helpers.pictures import texts

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


def data_of(lake: Lake) -> FigureData:
    return FigureData(
        connection=connect(lake), grid="demo", scale="world", model="tiny-llama",
        dataset="world", protocol="token_accuracy", rows=figures.framed([]), style={},
    )  # fmt: skip


def pictures(lake: Lake) -> list[figures.Picture]:
    return list(training.pictures(data_of(lake)))


def words(svg: bytes) -> list[str]:
    return texts(svg)


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
    said = found["Training of malmen"].text
    assert said.startswith("Training takes the mean from 60.0 % to 73.0 % at step 4 of 4.")


def test_the_best_state_is_marked_where_it_is(tmp_path: Path) -> None:
    """One star for each cell, and another picture where another state was the best."""
    steps: Any = validated().steps
    rows = [
        {"n_batches": 4, "batch_size": 10, "seed": 0, **row}
        for row in steps
        if row["metric"].startswith("validation_")
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


def steps_of(recipe: str, steps: int, optimise: str = "trajectory", **changes: Any) -> CellResult:
    """A cell whose network was trained for so many training steps by a recipe."""
    result = cell(variant=f"{recipe}_{steps}", **changes)
    settings = {"reference": recipe, "optimise": optimise, "trajectory_batches": None}
    rows: Any = [row for row in result.steps if row["metric"] != "train_loss"]  # type: ignore[index]
    rows += [{"step": i + 1, "metric": "train_loss", "value": 1.0} for i in range(steps)]
    return dataclasses.replace(result, steps=rows, resolved={"settings": settings})


def test_what_training_buys_is_drawn_over_optimiser_steps(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    for steps in (0, 1, 10):
        for seed in (0, 1):
            lake.commit(steps_of("official", steps, seed=seed))
        lake.commit(steps_of("converged", steps, "batch"))
    for steps in (0, 1):
        lake.commit(steps_of("paper", steps))
    lake.commit(cell(editor="ft"))
    rows = optimiser_steps._rows(data_of(lake))
    made = {(row["reference"], row["optimiser_steps"]) for row in rows}
    # A step per batch of a trajectory as long as the stream, which has four.
    assert made == {
        *(("official", n) for n in (0, 1, 10)), *(("converged", n) for n in (0, 4, 40)),
        *(("paper", n) for n in (0, 1)),
    }  # fmt: skip
    (picture,) = optimiser_steps.pictures(data_of(lake))
    said = words(picture.svg)
    assert {"rledit, official", "rledit, converged", "optimiser steps", "40"} <= set(said)
    assert "rledit, paper" not in said  # two points are no curve


def test_no_curve_of_what_training_buys_for_one_number_of_steps(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(steps_of("official", 1))
    lake.commit(cell(editor="malmen"))
    assert not list(optimiser_steps.pictures(data_of(lake)))


def test_a_cell_at_several_addresses_is_one_point_of_what_training_buys(tmp_path: Path) -> None:
    """Otherwise it would weigh more than other seeds in the mean."""
    lake = Lake(str(tmp_path / "lake"))
    for seed in (0, 1):
        lake.commit(steps_of("official", 10, seed=seed))
    (first, second) = (record.address for record in lake.manifest())
    again = [dataclasses.replace(first, variant="same"), dataclasses.replace(first, model="other")]
    lake.show([first, second, *again, dataclasses.replace(first, grid="later")])
    assert len(optimiser_steps._rows(data_of(lake))) == 2
