"""Proxy models of the main table are edited: their rows are no row of the unedited model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.plan.cell_data import calibration_edits
from pipeline.plan.cells import cells_of
from pipeline.run.cache import Cache
from pipeline.run.reporting import silent
from pipeline.run.stages.prepare import open_model, prepare_model
from pipeline.run.stages.train import training_batches, trajectories
from rledit.calibration import calibrate
from rledit.editors import EDITORS, TrainableEditor
from rledit.protocols import protocol
from rledit.scoring import EditScore, Scorer

GRID = Path(__file__).parents[4] / "jobs" / "grids" / "table2.yaml"
MODELS = ("Llama-3-8B", "Gemma-2-9B", "Mistral-7B-v0.3")


def efficacy(scores: list[EditScore]) -> float:
    return sum(score.efficacy or 0.0 for score in scores) / len(scores)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["FEVER", "ZsRE"])
@pytest.mark.parametrize("model", MODELS)
def test_rledit_edits_the_proxies_of_table_2(model: str, dataset: str, tmp_path: Path) -> None:
    planned = cells_of(load_grid(GRID, (), "standin", 2))
    (cell,) = [
        c for c in planned if (c.label, c.model.name, c.dataset.name) == ("rledit", model, dataset)
    ]
    folder = prepare_model(cell, Cache(tmp_path), silent)
    opened = open_model(cell, folder)
    cls = EDITORS["rledit"]
    batch = cell.source().draw("validation", calibration_edits(cell), seed=0)
    found = calibrate(opened, cls, cell.settings, batch, partial(training_batches, cell))
    edits = cell.source().draw("evaluation", cell.n_edits, seed=0)
    scorer = Scorer(opened, edits, [protocol("token_accuracy")])
    before = efficacy(scorer.score(len(edits)))
    editor = cls(opened, found.config)
    assert isinstance(editor, TrainableEditor)
    for step in range(editor.train_steps):
        editor.train_step(*trajectories(cell, editor, step))
    size = cell.stream.batch_size
    for first in range(0, len(edits), size):
        editor.edit(editor.encode(edits[first : first + size]))
    assert efficacy(scorer.score(len(edits))) >= before + 20
