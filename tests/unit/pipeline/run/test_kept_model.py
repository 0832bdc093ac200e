"""A worker keeps its model between tasks, and no row tells whether it was kept or loaded."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.config.parse import load_grid
from pipeline.inputs.tokenizer_files import tokenizer_in
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.lake import Lake
from pipeline.run import kept_model
from pipeline.run.cache import Cache
from pipeline.run.reporting import Stage, silent
from pipeline.run.stages import prepare
from pipeline.run.tasks import perform, tasks_of
from pipeline.storage.run_paths import RunPaths
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
EDITORS = (
    "editors=[{editor: ft, settings: {steps: 3, lr: 1.0e-2}}, "
    "{editor: ultraedit, settings: {step: 1.0e-2}}, "
    "{editor: memit, settings: {value_steps: 2, target_modules: ['down:1']}}, "
    "{editor: rledit, settings: {rank: 8, n_blocks: 1, init_std: 0.05, initial_step: 1.0e-2, "
    "meta_lr: 1.0e-3, train_steps: 1}}, {editor: none}]"
)


class Broken(Exception):
    """Ends a task in its midst."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_model(cells()[0], Cache(tmp_path_factory.mktemp("models"))).parent


@contextmanager
def counted_loads() -> Iterator[list[Path]]:
    """Folders that models are loaded from, by a new worker."""
    folders: list[Path] = []
    whole = prepare.load_model

    def load(folder: Path, dtype: Any) -> Any:
        folders.append(folder)
        return whole(folder, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "load_model", load)
        kept_model.drop()
        yield folders
        kept_model.drop()


@pytest.fixture
def loads() -> Iterator[list[Path]]:
    with counted_loads() as folders:
        yield folders


@pytest.fixture(scope="module")
def fresh(models: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """Where all cells lie, each task of which loaded its model."""
    where = places(tmp_path_factory.mktemp("fresh") / "run", models)
    with counted_loads() as folders:
        done(cells(), where, anew=True)
        assert len(folders) > len(cells())
    return where


def cells(*changes: str) -> list[Cell]:
    common = (EDITORS, "covariance={documents: 60}", *changes)
    return cells_of(load_grid(GRID, common))


def start_again(loads: list[Path]) -> None:
    """As a new worker."""
    kept_model.drop()
    loads.clear()


def places(folder: Path, models: Path) -> RunPaths:
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "models").symlink_to(models)
    return RunPaths(lake=str(folder / "lake"), cache=str(folder / "cache"), tracking="")


def done(chosen: list[Cell], where: RunPaths, *, anew: bool) -> None:
    for task in tasks_of(chosen).values():
        if anew:
            kept_model.drop()
        perform(task, where, silent)


def rows(chosen: Cell, where: RunPaths) -> dict[str, Any]:
    lake = Lake(where.lake)
    record = lake.record(key_of(chosen))
    assert record is not None and record.done, record
    result = lake.result(record, tables=("edits", "scores", "steps"))
    steps = zip(*result.steps.values(), strict=True)
    kept = [row for row in steps if not any(str(v).endswith("_seconds") for v in row)]
    assert kept
    return {"edits": result.edits, "scores": result.scores, "steps": kept}


def test_cells_of_one_worker_have_the_rows_of_fresh_ones(
    models: Path, fresh: RunPaths, tmp_path: Path, loads: list[Path]
) -> None:
    """Editors that write whole matrices, shifts, other modules; trainings between them."""
    chosen = cells()
    one = places(tmp_path / "one", models)
    done(chosen, one, anew=False)
    assert len(loads) == 1
    for cell in chosen:
        assert rows(cell, one) == rows(cell, fresh), cell.label


@pytest.mark.long
def test_a_memory_beside_the_model_is_taken_off_it(
    models: Path, tmp_path: Path, loads: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    grace = "{editor: grace, settings: {target_modules: ['down:1'], radius: 1.0, steps: 3}}"
    chosen = cells(f"editors=[{grace}, {{editor: ultraedit, settings: {{step: 1.0e-2}}}}]")
    fresh, one = places(tmp_path / "fresh", models), places(tmp_path / "one", models)
    done(chosen, fresh, anew=True)
    start_again(loads)
    done(chosen, one, anew=False)
    assert len(loads) == 1 and "left its model changed" not in caplog.text
    assert rows(chosen[-1], one) == rows(chosen[-1], fresh)


def test_a_cell_after_one_that_failed_in_its_midst_has_the_rows_of_a_fresh_one(
    models: Path, fresh: RunPaths, tmp_path: Path, loads: list[Path]
) -> None:
    first, second = cells()[:2]
    one = places(tmp_path / "one", models)

    def stop(stage: Stage, count: int, total: int, *_: object) -> None:
        if stage == "edit" and count == 2:
            raise Broken

    with pytest.raises(Broken):
        for task in tasks_of([first]).values():
            perform(task, one, stop)
    done([second], one, anew=False)
    assert len(loads) == 1
    assert rows(second, one) == rows(second, fresh)


@pytest.mark.parametrize(
    "harm",
    ["original", *(pytest.param(h, marks=pytest.mark.long) for h in ("other tensor", "hook"))],
)
def test_a_model_that_cannot_be_restored_is_dropped_with_a_warning(
    harm: str,
    models: Path,
    fresh: RunPaths,
    tmp_path: Path,
    loads: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = cells()[:2]
    where = places(tmp_path / "one", models)
    lend = kept_model.lend

    def harmed(model: Any) -> None:
        lend(model)
        if harm == "original":
            model.weights.original(model.modules[0])[0, 0] += 1e-6
        elif harm == "hook":
            model.linear(model.modules[0]).register_forward_hook(lambda *_: None)
        else:
            with torch.no_grad():
                model.model.get_output_embeddings().weight[0, 0] += 1e-6

    with monkeypatch.context() as patch:
        patch.setattr(kept_model, "lend", harmed)
        done([first], where, anew=False)
    assert "it is dropped, and loaded again" in caplog.text
    assert len(loads) == 1
    done([second], where, anew=False)
    assert len(loads) == 2
    assert rows(second, where) == rows(second, fresh)


@pytest.mark.long
def test_another_model_takes_the_place_of_the_kept_one(
    models: Path, tmp_path: Path, loads: list[Path]
) -> None:
    """Memory holds one: by files, by precision; and files that changed are read again."""
    (found,) = (path for path in models.iterdir() if (path / "config.json").is_file())
    folder = tmp_path / "model"
    shutil.copytree(found, folder)

    def run(dtype: str, name: str) -> None:
        own = f"models=[{{name: own, checkpoint: {folder}, dtype: {dtype}}}]"
        chosen = [c for c in cells(own) if c.label == "ultraedit"]
        done(chosen, places(tmp_path / name, models), anew=False)

    run("float32", "first")
    run("float32", "second")
    assert len(loads) == 1
    run("float64", "third")
    assert len(loads) == 2
    os.utime(folder / "model.safetensors", ns=(1, 1))
    run("float64", "fourth")
    assert len(loads) == 3


def test_cells_of_one_worker_share_a_tokenizer_until_its_files_change(
    models: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(next(models.iterdir()), tmp_path / "model")
    found = tokenizer_in(folder)
    assert tokenizer_in(folder) is found
    (folder / "tokenizer_config.json").write_text("{}\n")
    assert tokenizer_in(folder) is not found


def test_two_models_that_are_open_share_no_weights(models: Path, loads: list[Path]) -> None:
    (folder,) = (path for path in models.iterdir() if (path / "config.json").is_file())
    cell = cells()[0]
    with kept_model.keeping():
        one, two = prepare.open_model(cell, folder), prepare.open_model(cell, folder)
        assert one.model is not two.model
    assert prepare.open_model(cell, folder).model is not one.model
    assert len(loads) == 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_is_gone_from_memory_before_another_is_loaded(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is a stand-in; that memory really comes back there is shown by tests/gpu."""
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("all"))
    kept_model.drop()
    emptied.clear()
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    models: list[weakref.ref[torch.nn.Module]] = []

    def load() -> torch.nn.Module:
        assert all(model() is None for model in models)
        made = torch.nn.Linear(3, 3)
        made.itself = [made]  # type: ignore[assignment]  # only a collection of garbage ends it
        models.append(weakref.ref(made))
        return made

    def task(folder: Path) -> None:
        with kept_model.keeping():
            kept_model.take(folder, "float32", torch.device(device), load)

    task(folders[0])
    task(folders[0])
    assert len(models) == 1 and models[0]() is not None
    task(folders[1])
    assert len(models) == 2
    assert emptied == (["all"] if device == "cuda" else [])
    kept_model.drop()
    assert models[1]() is None


def test_a_gpu_gets_back_what_a_task_needed_beside_the_model(
    models: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between tasks; a stand-in for the card, as above."""
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("all"))
    monkeypatch.setattr(prepare, "device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)
    (folder,) = (path for path in models.iterdir() if (path / "config.json").is_file())
    for done in (1, 2):
        with kept_model.keeping():
            prepare.open_model(cells()[0], folder)
            assert len(emptied) == done - 1
        assert len(emptied) == done
    assert len(loads) == 1
