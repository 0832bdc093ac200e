"""Cells whose edits lie in a memory beside the model: rows, resume, export."""

from __future__ import annotations

import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.parse import load_grid
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.lake import Lake
from pipeline.run import kept_model
from pipeline.run.cache import Cache
from pipeline.run.export import export
from pipeline.run.reporting import silent
from pipeline.run.stages import edit
from pipeline.run.stages.answer_rows import StreamAnswers
from pipeline.run.stages.edit import StreamRows, edit_stream
from pipeline.run.tasks import perform, tasks_of
from pipeline.storage.run_paths import RunPaths
from rledit.editing.export import ExportError
from rledit.editing.memories import open_edited
from rledit.editing.methods import MethodError, method_of
from rledit.editors import EDITORS
from rledit.editors.overlay_editor import OverlayEditor
from rledit.model import EditableModel
from rledit.protocols import read
from tests.unit.helpers.prepared import prepared_model
from tests.unit.helpers.text_edits import tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
SETTINGS = {
    "grace": "{target_modules: ['down:1'], radius: 1.0, steps: 15}",
    "wise": "{target_modules: ['down:0'], contexts: [], steps: 15, lr: 2.0, alpha: 0.1, beta: 1.0, "
    "gamma: 0.5, ratio: 0.7, save_freq: 4, merge_freq: 8}",
    "memoir": "{target_modules: ['down:0'], contexts: [], steps: 15, lr: 3.0}",
}
NAMES = [name for name, cls in EDITORS.items() if issubclass(cls, OverlayEditor)]
FIRST = [NAMES[0], *(pytest.param(name, marks=pytest.mark.long) for name in NAMES[1:])]
TIMES = ("edit_seconds", "route_ms")


def editor_of(name: str) -> str:
    return f"editors=[{{editor: {name}, settings: {SETTINGS[name]}}}]"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    cache = Cache(tmp_path_factory.mktemp("models"))
    prepared_model(cells_of(load_grid(GRID, [editor_of("grace")]))[0], cache)
    return cache


def placed(models: Cache, folder: Path, name: str, *changes: str) -> tuple[Cell, Cache]:
    (cell,) = cells_of(load_grid(GRID, [editor_of(name), *changes]))
    folder.mkdir(exist_ok=True)
    (folder / "models").symlink_to(models.folder / "models")
    return cell, Cache(folder)


def steps(rows: StreamRows) -> list[tuple[Any, ...]]:
    return [(r["step"], r["metric"], r["value"]) for r in rows.steps if r["metric"] not in TIMES]


@pytest.mark.parametrize("name", FIRST)
def test_a_checkpoint_says_what_was_routed(name: str, models: Cache, tmp_path: Path) -> None:
    cell, cache = placed(models, tmp_path / "cache", name)
    rows = edit_stream(cell, prepared_model(cell, cache), cache, None, silent)
    last = {r["metric"]: r["value"] for r in rows.steps if r["step"] == cell.n_edits}
    assert {f"routed_{probe}_wrong" for probe in ("edit", "rephrase", "locality")} <= last.keys()
    assert {"routed_edit_right", "routed_rephrase_right", "route_ms"} <= last.keys()
    assert last["memory_entries"] > 0
    assert last["memory_bytes"] > 0
    assert last["weight_change_norm"] == 0
    assert last["routed_edit_right"] > 80
    assert last["routed_edit_right"] + last["routed_edit_wrong"] <= 100
    efficacy = {(r["checkpoint"], r["protocol"]): r["efficacy"] for r in rows.scores}
    protocol = cell.protocols[0]
    assert efficacy[cell.n_edits, protocol] > efficacy[0, protocol] + 20


def models_opened(monkeypatch: pytest.MonkeyPatch) -> list[EditableModel]:
    """Those that cells edit from now on."""
    opened: list[EditableModel] = []
    opening = edit.open_model

    def noting(*arguments: Any) -> EditableModel:
        opened.append(opening(*arguments))
        return opened[-1]

    monkeypatch.setattr(edit, "open_model", noting)
    return opened


@pytest.mark.parametrize("name", FIRST)
def test_what_the_unedited_model_answers_can_be_asked_with_a_filled_memory(
    name: str, models: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a stream that goes on and brings no answers of before its first edit."""
    opened = models_opened(monkeypatch)
    cell, cache = placed(models, tmp_path / "cache", name)
    whole = edit_stream(cell, prepared_model(cell, cache), cache, None, silent)
    (model,) = opened
    assert model.overlay is not None and model.overlay.entries
    asking = StreamAnswers(cell, model, cell.source().draw("evaluation", cell.n_edits, cell.seed))
    rows: list[dict[str, Any]] = []
    for moment in (0, cell.n_edits):
        asking.add_missing(rows, moment)
        assert said(rows, moment) == said(whole.answers, moment) != []
    assert said(rows, 0) != said(rows, cell.n_edits)


def said(rows: list[dict[str, Any]], moment: int) -> list[str]:
    return [row["answer"] for row in rows if row["checkpoint"] == moment]


@pytest.mark.parametrize("name", FIRST)
def test_a_stream_that_was_cut_goes_on_to_the_same_rows(
    name: str, models: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Exception):
        pass

    cell, straight = placed(models, tmp_path / "straight", name, "checkpoints=2")
    folder = prepared_model(cell, straight)
    whole = edit_stream(cell, folder, straight, None, silent)
    _, cache = placed(models, tmp_path / "cut", name, "checkpoints=2")
    monkeypatch.setattr(edit, "SAVE_EVERY_SECONDS", 0.0)
    saves: list[int] = []
    saving = edit._save

    def save_once(*arguments: Any) -> None:
        saving(*arguments)
        saves.append(1)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(edit, "_save", save_once)
        with pytest.raises(Cut):
            edit_stream(cell, folder, cache, None, silent)
    resumed = edit_stream(cell, folder, cache, None, silent)
    assert steps(resumed) == steps(whole)
    assert resumed.edits == whole.edits
    assert resumed.scores == whole.scores


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        pytest.param(
            name,
            kept,
            id=f"{name}-{'kept' if kept else 'run again'}",
            marks=()
            if kept and name == NAMES[0]
            else pytest.mark.long
            if kept or name == NAMES[0]
            else pytest.mark.slow,
        )
        for name in NAMES
        for kept in (True, False)
    ],
)
def test_an_export_is_the_unedited_model_with_the_memory_and_a_loader(
    name: str, kept: bool, models: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = models_opened(monkeypatch)
    monkeypatch.setattr(kept_model, "keeping", nullcontext)  # which empties the memory
    change = f"keep_edited={str(kept).lower()}"
    cell, cache = placed(models, tmp_path / "cache", name, change)
    run_paths = RunPaths(lake=str(tmp_path / "lake"), cache=str(cache.folder), tracking="")
    for task in tasks_of([cell]).values():
        perform(task, run_paths, silent)
    ours = opened[0]
    for form in ("delta", "lora"):
        with pytest.raises(ExportError, match="memory beside the model.* take the form checkpoint"):
            export(key_of(cell), run_paths, tmp_path / form, form=form)  # type: ignore[arg-type]
    folder = export(key_of(cell), run_paths, tmp_path / "out")
    edits = cell.source().draw("evaluation", cell.n_edits, seed=cell.seed)
    samples = [ours.encoder.sample(e.prompt, e.target) for e in edits]
    again = open_edited(folder)
    assert [r.nll for r in read(again, samples)] == pytest.approx(
        [r.nll for r in read(ours, samples)], rel=1e-5
    )
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    with ours.weights.unedited():
        unedited = [r.nll for r in read(ours, samples)]
    modules = cell.settings.modules
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bare = EditableModel(plain, tokenizer, modules, **cell.prompting)
    assert [r.nll for r in read(bare, samples)] == pytest.approx(unedited, rel=1e-5)
    # A call of the user's own, through the loader that lies beside the weights.
    prompt = torch.tensor([again.encoder.prompt_ids(edits[0].prompt)])
    with torch.no_grad():
        own = again.model(input_ids=prompt).logits[0, -1]
        before = bare.model(input_ids=prompt).logits[0, -1]
    assert not torch.allclose(own, before)
    loaded = runpy.run_path(str(folder / "load_edited.py"))["load_edited"]()[0]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=prompt).logits[0, -1], own)
    if kept and name == NAMES[1]:  # once as a user does, in a process of its own
        code = (
            "import load_edited; print(load_edited.load_edited()[0](input_ids=__import__('torch')"
        )
        code += f".tensor({prompt.tolist()})).logits[0, -1].argmax().item())"
        root = Path(__file__).parents[4]
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert int(done.stdout.split()[-1]) == int(own.argmax())


def test_a_folder_without_a_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"memory\.safetensors is not there"):
        open_edited(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_ledger_takes_no_editor_with_a_memory(name: str) -> None:
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), ("down:1",)).model
    with pytest.raises(MethodError, match=f"'{name}' keeps its edits in a memory"):
        method_of(model, name)


@pytest.mark.parametrize("name", FIRST)
def test_the_lake_has_the_routing_of_every_checkpoint(
    name: str, models: Cache, tmp_path: Path
) -> None:
    cell, cache = placed(models, tmp_path / "cache", name)
    run_paths = RunPaths(lake=str(tmp_path / "lake"), cache=str(cache.folder), tracking="")
    for task in tasks_of([cell]).values():
        perform(task, run_paths, silent)
    lake = Lake(run_paths.lake)
    (record,) = [r for r in lake.manifest() if r.asked is None]
    columns = lake.columns("steps", record)
    assert "routed_rephrase_right" in columns["metric"]
