"""Cells whose model breaks: the reason is recorded, and earlier scores are kept and marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.config.parse import load_grid
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.grid_plan import make_plan
from pipeline.results.lake.lake import Lake
from pipeline.results.query import connect, query, runs
from pipeline.results.report import write_report
from pipeline.run.cache import Cache
from pipeline.run.cell import record_failure, run_cell
from pipeline.run.reporting import silent
from pipeline.run.stages import edit, train
from rledit.finite import NonFiniteError
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[2] / "cluster" / "tiny.yaml"

SOURCE = """
import os
from rledit.editors.ultraedit import UltraEdit

class Exploding(UltraEdit):
    name = "exploding"
    count = 0

    def edit(self, batch):
        measured = super().edit(batch)
        self.count += 1
        if self.count == 3 and os.environ.get("EXPLODE") == "1":
            name = self.model.modules[0]
            self.model.weights.set(name, self.model.weights.read(name) * float("inf"))
        return measured

    def state_dict(self):
        import torch
        return super().state_dict() | {"count": torch.tensor(self.count)}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.count = int(state["count"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = cells_of(load_grid(GRID, ["editors=[{editor: none}]"]))[0]
    return prepared_model(chosen, Cache(tmp_path_factory.mktemp("models")))


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    name = f"exploding_{tmp_path.parent.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EXPLODE", "1")
    editors = f"editors=[{{editor: '{name}:Exploding', settings: {{step: 1.0e-3}}}}]"
    return cells_of(load_grid(GRID, [editors]))[0]


def fail(cell: Cell, folder: Path, tmp_path: Path) -> str:
    """Run the cell as a worker does, record its end as the driver does; returns the reason."""
    lake = Lake(str(tmp_path / "lake"))
    with pytest.raises(NonFiniteError) as caught:
        run_cell(cell, folder, None, Cache(tmp_path / "cache"), lake, silent)
    reason = f"{type(caught.value).__name__}: {caught.value}"
    record_failure(cell, lake, reason)
    return reason


def test_a_cell_that_collapses_keeps_what_it_reached(
    cell: Cell, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "SAVE_EVERY_SECONDS", 0.0)
    reason = fail(cell, folder, tmp_path)
    assert reason.startswith("NonFiniteError: editing batch 3 (edits 9 to 12): model.layers.0.mlp.")
    assert "holds weights that are no numbers after the edit; the edits have broken" in reason
    lake = Lake(str(tmp_path / "lake"))
    (record,) = lake.manifest()
    assert record.status == "failed" and record.has_rows and not record.done
    assert record.reason is not None
    assert record.reason.startswith(f"{reason}; kept: 8 edits, token_accuracy efficacy ")
    columns = lake.columns("scores", record)
    assert set(columns["checkpoint"]) == {0, 4, 8} and set(columns["final"]) == {False}
    assert set(lake.columns("edits", record)["checkpoint"]) == {4, 8}
    assert set(lake.columns("steps", record)["step"]) == {4, 8}

    # Shown as a failed cell: its scores are none of a finished stream.
    shown = query(
        "SELECT n_edits, final, status, efficacy IS NULL AS empty FROM runs "
        "WHERE protocol IS NULL OR protocol = 'token_accuracy' ORDER BY n_edits",
        lake,
    ).dicts()
    assert [(r["n_edits"], r["final"], r["status"], r["empty"]) for r in shown] == [
        (0, False, "failed", False),
        (4, False, "failed", False),
        (8, False, "failed", False),
        (None, None, "failed", True),
    ]
    (only,) = runs(lake)
    assert only["status"] == "failed" and only["efficacy"] is None
    assert query("SELECT count(*) AS n FROM edits", lake).dicts() == [{"n": 0}]
    assert query("SELECT count(*) AS n FROM curves", lake).dicts() == [{"n": 0}]
    assert connect(lake) is not None
    plan = make_plan(load_grid(GRID), lake, cells=[cell])
    assert plan.missing == (cell,) and plan.failed == {key_of(cell): record.reason}
    page = Path(write_report(lake, "tiny", tmp_path / "report.html")).read_text()
    assert "editing batch 3 (edits 9 to 12)" in page and "kept: 8 edits" in page

    # Tried again, it goes on from its saved state and ends the same way.
    assert fail(cell, folder, tmp_path) == reason
    (again,) = lake.manifest()
    assert again.reason == record.reason
    assert lake.columns("scores", again) == columns

    # Another reason takes the place of all of it.
    record_failure(cell, lake, "OutOfMemoryError: no room")
    (other,) = lake.manifest()
    assert other.reason == "OutOfMemoryError: no room" and not other.has_rows
    assert not lake.storage.list("scores")

    # And a success of everything.
    fail(cell, folder, tmp_path)
    monkeypatch.setenv("EXPLODE", "0")
    run_cell(cell, folder, None, Cache(tmp_path / "cache"), lake, silent)
    (done,) = lake.manifest()
    assert done.done and lake.verify(key_of(cell)) == []
    assert len(lake.storage.list("scores")) == 1
    assert [r["final"] for r in runs(lake)] == [True, True]


def test_a_kept_row_that_is_lost_leaves_the_reason(
    cell: Cell, folder: Path, tmp_path: Path
) -> None:
    fail(cell, folder, tmp_path)
    lake = Lake(str(tmp_path / "lake"))
    (record,) = lake.manifest()
    lake.storage.delete(record.files["scores"]["path"])
    (left,) = lake.manifest()
    assert left.status == "failed" and not left.has_rows and left.reason == record.reason
    assert [r["status"] for r in runs(lake)] == ["failed"]


def broken_copy(folder: Path, to: Path) -> Path:
    """The model with one entry that is no number, as a broken save leaves it."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    file = next(to.glob("*.safetensors"))
    tensors = load_file(file)
    name = next(n for n in sorted(tensors) if "up_proj" in n)
    tensors[name][0, 1] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("editor", ["none", "ultraedit"])
def test_a_broken_checkpoint_has_no_scores(editor: str, folder: Path, tmp_path: Path) -> None:
    chosen = next(c for c in cells_of(load_grid(GRID)) if c.label == editor)
    reason = fail(chosen, broken_copy(folder, tmp_path / "broken"), tmp_path)
    assert "the checkpoint holds weights that are no numbers: model.layers.0." in reason
    assert "has nan in row 0, column 1 (1 of " in reason
    (record,) = Lake(str(tmp_path / "lake")).manifest()
    assert record.status == "failed" and record.reason == reason and not record.has_rows


def test_training_stops_where_the_loss_is_no_number(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = "editors.rledit.settings.initial_step=1.0e+30"
    chosen = next(c for c in cells_of(load_grid(GRID, [huge])) if c.label == "rledit")
    with pytest.raises(NonFiniteError, match=r"^training, .*batch.*: .* is not finite"):
        train.train(chosen, folder, Cache(tmp_path), silent)
    assert Cache(tmp_path).file(train.trained_name(chosen)) is None


def test_a_trained_network_with_holes_is_not_edited_with(folder: Path, tmp_path: Path) -> None:
    chosen: Any = next(c for c in cells_of(load_grid(GRID)) if c.label == "rledit")
    path = train.train(chosen, folder, Cache(tmp_path), silent)
    assert path is not None
    tensors = train.load_trained(path).state
    name = next(n for n in sorted(tensors) if n.startswith("network."))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path, metadata={"facts": '{"seconds": 1.0, "curve": []}'})
    with pytest.raises(NonFiniteError, match=rf"delete the file to train it again.*{name}"):
        train.load_trained(path)
