"""The demo's real model on real facts, shortened: fetched, asked, trained, edited, and compared.

From the text of the demo's grid, through real Ray, with the demo's settings but for the length of
training: four minutes on two slow cores. CI runs it where the wheel can be had and time is left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config.presets import PRESETS
from pipeline.inputs.checkpoint_files import CheckpointUnavailable
from pipeline.inputs.checkpoints import fetch_whole
from pipeline.results.query import query, runs

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

GRID = Path(__file__).parents[2] / "jobs" / "grids" / "demo.yaml"
EDITORS = ("none", "untrained", "rledit")
SHORT = {"trajectory_batches": 3, "train_steps": 1, "validate_every": 1}
TIMEOUT_SECONDS = 3600


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three batches of ten real facts: RLEdit with earlier keys, and untrained."""
    try:
        fetch_whole(PRESETS["smollm2-135m"].checkpoint)
    except CheckpointUnavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("real")
    data = yaml.safe_load(GRID.read_text())
    entries = [e for e in data["editors"] if e["editor"] == "none" or e.get("variant")]
    assert [e["editor"] for e in entries] == list(EDITORS)
    entries[-1]["settings"] |= SHORT
    data |= {"name": "short", "editors": entries, "streams": [{"n_batches": 3, "batch_size": 10}]}
    grid = folder / "short.yaml"
    grid.write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "pipeline.cli", "run", grid, "--results", folder]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "said.txt").write_text(done.stdout)
    return folder


def test_every_method_edits_and_the_unedited_model_keeps_what_it_knows(results: Path) -> None:
    rows = {
        row["editor"]: row
        for row in runs(str(results / "lake"), "short")
        if row["protocol"] == "token_accuracy"
    }
    scores = ("efficacy", "generalization", "specificity")
    means = {name: sum(row[score] for score in scores) / 3 for name, row in rows.items()}
    assert set(means) == set(EDITORS)
    assert means["rledit"] > means["none"] and means["untrained"] > means["none"]
    assert rows["none"]["specificity"] == rows["none"]["specificity_self"] == 100
    assert rows["rledit"]["efficacy"] > rows["none"]["efficacy"] + 30
    assert rows["rledit"]["specificity_self"] > 40
    assert rows["rledit"]["train_seconds"] > 0 == rows["untrained"]["train_seconds"]


def test_training_is_validated(results: Path) -> None:
    """On facts that are not evaluated, before training and after it."""
    found = query(
        "SELECT metric, list(value ORDER BY step) AS along FROM curves "
        "WHERE editor = 'rledit' AND metric IN ('train_loss', 'validation_score') GROUP BY metric",
        str(results / "lake"),
    )
    along = {row["metric"]: row["along"] for row in found.dicts()}
    assert len(along["validation_score"]) == 2 and len(along["train_loss"]) == 1
    assert along["validation_score"][0] != along["validation_score"][1]


def test_the_model_says_other_things_than_before(results: Path) -> None:
    changed = query(
        "SELECT editor, count(*) FILTER (WHERE before <> answer) AS n FROM answers "
        "WHERE probe = 'edit' GROUP BY editor",
        str(results / "lake"),
    )
    found = {row["editor"]: row["n"] for row in changed.dicts()}
    assert found["none"] == 0
    assert found["rledit"] > 0 and found["untrained"] > 0
    assert "rledit answers short" in (results / "said.txt").read_text()
