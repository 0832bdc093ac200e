"""The exported model is the one the stream ended with, bit by bit."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.parse import load_grid
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.versions import code_version
from pipeline.results.lake.lake import Lake, LakeError
from pipeline.run import export as export_module
from pipeline.run import kept_model
from pipeline.run.cache import Cache
from pipeline.run.export import export
from pipeline.run.reporting import silent
from pipeline.run.resume import write_tensors
from pipeline.run.stages import edit
from pipeline.run.stages.prepare import open_model
from pipeline.run.tasks import perform, tasks_of
from pipeline.storage.run_paths import RunPaths
from rledit.editing.export import ExportError
from rledit.model import EditableModel
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
EDITOR = "editors=[{editor: ultraedit, settings: {step: 1.0e-2}}]"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    cache = Cache(tmp_path_factory.mktemp("models"))
    prepared_model(cells_of(load_grid(GRID, [EDITOR]))[0], cache)
    return cache


def done(
    models: Cache, folder: Path, *changes: str, patch: pytest.MonkeyPatch
) -> tuple[Cell, RunPaths, EditableModel]:
    """A finished cell, where it lies, and its model as its stream has left it."""
    opened: list[EditableModel] = []

    def opening(*arguments: Any) -> EditableModel:
        opened.append(open_model(*arguments))
        return opened[-1]

    patch.setattr(edit, "open_model", opening)
    patch.setattr(kept_model, "keeping", nullcontext)  # which puts the matrices back
    (cell,) = cells_of(load_grid(GRID, [EDITOR, *changes]))
    cache = folder / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(models.folder / "models")
    run_paths = RunPaths(lake=str(folder / "lake"), cache=str(cache), tracking="")
    for task in tasks_of([cell]).values():
        perform(task, run_paths, silent)
    return cell, run_paths, opened[-1]


def logits(model: Any, tokenizer: Any, cell: Cell) -> Tensor:
    prompts = [e.prompt for e in cell.source().draw("evaluation", 6, seed=0)]
    with torch.no_grad():
        return torch.cat(
            [model(**tokenizer(p, return_tensors="pt")).logits[0, -1:] for p in prompts]
        )


def test_a_rank_without_an_adapter_is_refused_before_a_cell_is_looked_for(tmp_path: Path) -> None:
    run_paths = RunPaths.under(tmp_path)
    with pytest.raises(ExportError, match="--rank is for the form lora, not for delta"):
        export("0123", run_paths, tmp_path / "out", delta=True, rank=2)
    with pytest.raises(LakeError):
        export("0123", run_paths, tmp_path / "out", form="lora", rank=2)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "run again"])
def test_an_exported_checkpoint_is_the_model_at_the_streams_end(
    kept: bool, models: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = f"keep_edited={str(kept).lower()}"
    cell, run_paths, ours = done(models, tmp_path, change, patch=monkeypatch)
    assert (Cache(run_paths.cache).file(edit.edited_name(cell)) is not None) == kept
    folder = export(key_of(cell)[:6], run_paths, tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert torch.equal(logits(model, tokenizer, cell), logits(ours.model, tokenizer, cell))
    with ours.weights.unedited():
        assert not torch.equal(logits(model, tokenizer, cell), logits(ours.model, tokenizer, cell))
    assert json.loads((folder / "edited.json").read_text())["cell"] == key_of(cell)


def test_matrices_that_other_code_kept_are_not_those_of_a_later_run(
    models: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, run_paths, ours = done(models, tmp_path, "keep_edited=true", patch=monkeypatch)
    kept = Cache(run_paths.cache).folder / edit.edited_name(cell)
    theirs = {name: value + 1 for name, value in load_file(kept).items()}
    write_tensors(kept, theirs, {"code_version": "0.1.0+other"})
    folder = export(key_of(cell), run_paths, tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert torch.equal(logits(model, tokenizer, cell), logits(ours.model, tokenizer, cell))
    with safe_open(kept, framework="pt") as file:  # compared with the rows, and not run once more
        assert file.metadata()["code_version"] == code_version()


def test_a_cell_that_keeps_no_prefixes_finds_its_network_when_it_is_run_again(
    models: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = """editors=[{editor: malmen, settings: {reference: converged, rank: 4,
        train_steps: 1, trajectory_batches: 2, validation_batches: 1, initial_step: 1.0e-3}}]"""
    cell, run_paths, _ = done(
        models, tmp_path, trained, "resources.prefix_store_gb=0", patch=monkeypatch
    )
    networks = Cache(run_paths.cache).folder / "trained"
    before = sorted(path.name for path in networks.iterdir())
    export(key_of(cell), run_paths, tmp_path / "out", delta=True)
    assert sorted(path.name for path in networks.iterdir()) == before != []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_change_alone_gives_the_edited_matrices_exactly(
    dtype: str, models: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = prepared_model(cells_of(load_grid(GRID, [EDITOR]))[0], models)
    checkpoint = f"models=[{{name: m, checkpoint: {source}, dtype: {dtype}}}]"
    cell, run_paths, ours = done(
        models, tmp_path, checkpoint, "keep_edited=true", patch=monkeypatch
    )
    path = export(key_of(cell), run_paths, tmp_path / "out", delta=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["delta.safetensors"]
    changes = load_file(path)
    assert changes.keys() == {f"{name}.weight" for name in ours.modules}
    for name in ours.modules:
        change = changes[f"{name}.weight"]
        original = ours.weights.original(name)
        now = ours.linear(name).weight
        assert torch.equal((original.double() + change).float().to(now.dtype), now)
        assert float(change.norm()) > 0
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["facts"])["cell"] == key_of(cell)


def test_a_run_that_comes_out_otherwise_is_no_export(
    models: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, run_paths, _ = done(models, tmp_path, patch=monkeypatch)
    lake = Lake(run_paths.lake)
    record = lake.record(key_of(cell))
    assert record is not None
    result = lake.result(record, tables=("edits", "scores", "steps"))
    scores = dict(result.edits)  # type: ignore[arg-type]
    scores["efficacy"] = [100 - v for v in scores["efficacy"]]
    object.__setattr__(result, "edits", scores)
    lake.commit(result)
    with pytest.raises(LakeError, match="other scores than those in the lake.*keep_edited"):
        export(key_of(cell), run_paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert Cache(run_paths.cache).file(edit.edited_name(cell)) is None


@pytest.mark.parametrize("gpu", [True, False])
def test_a_cell_of_a_gpu_is_run_again_on_a_gpu_or_not_at_all(
    models: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    cell, run_paths, _ = done(models, tmp_path, patch=monkeypatch)
    theirs = replace(cell, resources=replace(cell.resources, gpus=1.0, ranks=2))
    again: list[Cell] = []

    def run_again(cell: Cell, *_: Any) -> None:
        again.append(cell)
        raise InterruptedError

    monkeypatch.setattr(export_module, "read_cell_spec", lambda *_: theirs)
    monkeypatch.setattr(export_module, "edit_stream", run_again)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    if gpu:
        with pytest.raises(InterruptedError):
            export(key_of(cell), run_paths, tmp_path / "out")
        assert [(c.resources.gpus, c.resources.ranks) for c in again] == [(1.0, 1)]
    else:
        with pytest.raises(ExportError, match="was run on a GPU.*machine with a GPU.*keep_edited"):
            export(key_of(cell), run_paths, tmp_path / "out")
        assert not again


def test_what_cannot_be_exported_says_why(
    models: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, run_paths, _ = done(models, tmp_path, patch=monkeypatch)
    with pytest.raises(LakeError, match=f"0 cells .* 'zz'; keys there: {key_of(cell)}"):
        export("zz", run_paths, tmp_path / "out")
    Lake(run_paths.lake).storage.delete(f"entries/{key_of(cell)}.json")
    with pytest.raises(LakeError, match="does not say what cell"):
        export(key_of(cell), run_paths, tmp_path / "out")
