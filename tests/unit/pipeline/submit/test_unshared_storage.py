"""A node without the shared storage: none of its output counts as a result."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.lake import Lake
from pipeline.run.device import NoGpuError, device_of
from pipeline.run.driver import unseen
from pipeline.run.reporting import silent
from pipeline.run.tasks import Task, perform, tasks_of
from pipeline.storage.run_paths import RunPaths

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"


def cells(*overrides: str) -> list[Cell]:
    return cells_of(load_grid(GRID, overrides))


def place(folder: Path) -> RunPaths:
    return RunPaths(lake=str(folder / "lake"), cache=str(folder / "cache"), tracking="")


def edits(chosen: list[Cell]) -> list[Task]:
    return [task for task in tasks_of(chosen).values() if task.kind == "edit"]


def test_a_network_that_is_not_there_is_not_replaced_by_an_untrained_one(tmp_path: Path) -> None:
    chosen = [c for c in cells() if c.trains][:1]
    (task,) = edits(chosen)
    with pytest.raises(FileNotFoundError, match="same storage on every node"):
        perform(task, place(tmp_path), silent)
    assert Lake(place(tmp_path).lake).record(key_of(task.cell)) is None


@pytest.mark.long
def test_rows_that_nobody_else_sees_are_no_success(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = "{editor: ultraedit, settings: {step: 0.001}}"
    one, two = edits(cells(f"editors=[{{editor: none}}, {own}]"))
    perform(one, place(tmp_path / "shared"), silent)
    perform(two, place(tmp_path / "own disk"), silent)
    lake = Lake(place(tmp_path / "shared").lake)
    assert unseen([one], lake, wait=0.0) == []
    assert caplog.messages == []
    assert unseen([one, two], lake, wait=0.0) == [two]
    (line,) = caplog.messages
    assert two.label in line and str(lake.storage) in line and "same storage" in line
    assert lake.record(key_of(two.cell)) is None, "a late file would be replaced by a failure"


def test_a_cell_without_a_gpu_leaves_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    (cell, *_) = cells()
    (greedy, *_) = cells("resources={gpus: 1}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device_of(cell.resources).type == "cpu"
    assert device_of(greedy.resources).type == "cuda"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(NoGpuError, match="sees none on this node"):
        device_of(greedy.resources)
