"""The demo's real model on real facts, shortened: fetched, asked, trained, edited, and compared.

From the text of the demo's grid, through real Ray, with the demo's own settings; about four minutes
on two cores.
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
EDITORS = ("none", "untrained", "memit", "rledit")
TIMEOUT_SECONDS = 3600


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of five batches of ten real facts with four of the demo's methods."""
    try:
        fetch_whole(PRESETS["smollm2-135m"].checkpoint)
    except CheckpointUnavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("real")
    data = yaml.safe_load(GRID.read_text())
    data["editors"] = [entry for entry in data["editors"] if entry["editor"] in EDITORS]
    data |= {"name": "short", "streams": [{"n_batches": 5, "batch_size": 10}]}
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
    # What training and its choice of the best state are for: less of everything else is lost.
    assert rows["rledit"]["specificity_self"] > rows["untrained"]["specificity_self"]
    assert rows["none"]["specificity"] == rows["none"]["specificity_self"] == 100
    assert rows["rledit"]["efficacy"] > rows["none"]["efficacy"] + 10
    assert rows["memit"]["efficacy"] > rows["none"]["efficacy"] + 30


def test_the_model_says_other_things_than_before(results: Path) -> None:
    changed = query(
        "SELECT editor, count(*) FILTER (WHERE before <> answer) AS n FROM answers "
        "WHERE probe = 'edit' GROUP BY editor",
        str(results / "lake"),
    )
    found = {row["editor"]: row["n"] for row in changed.dicts()}
    assert found["none"] == 0
    assert found["rledit"] > 0 and found["memit"] > 0
    assert "all of them: rledit answers short" in (results / "said.txt").read_text()
