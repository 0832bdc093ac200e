"""From a checkpoint's folder to a model: text parts, names in files, tensors that are not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from pipeline.inputs.checkpoints import CheckpointError, read_config
from pipeline.inputs.model_loading import configured, load_model, stored_name
from pipeline.plan.architecture import architecture_of
from pipeline.plan.cell_data import read_metadata
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell
from pipeline.plan.estimate import estimate
from pipeline.plan.estimate.summary import summary
from pipeline.plan.preflight import check_modules, preflight
from pipeline.results.lake.lake import Lake
from pipeline.run.export import _originals, _write_checkpoint, export
from pipeline.run.reporting import silent
from pipeline.run.tasks import perform, tasks_of
from pipeline.run.weight_files import CheckpointFiles
from pipeline.storage.run_paths import RunPaths
from rledit.model import EditableModel
from tests.unit.helpers.tiny_families import LISTED, UNLIKE, tiny_config
from tests.unit.pipeline.inputs.test_checkpoints import cell, untrained  # noqa: F401
from tests.unit.pipeline.inputs.test_pickled_weights import in_pickles

VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip


@pytest.fixture
def multimodal(tmp_path: Path, untrained: Path) -> tuple[Path, nn.Module]:  # noqa: F811
    """A tiny Gemma 3 with a vision tower, and the same model whole."""
    text = {**tiny_config("gemma3_text").to_dict(), "vocab_size": 1000}
    config = Gemma3Config(
        text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=999
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    folder = tmp_path / "gemma"
    model.save_pretrained(folder)
    for path in untrained.glob("*token*"):
        shutil.copy(path, folder)
    return folder, model


@pytest.mark.parametrize("layout", ["as saved", "as published"])
def test_the_text_part_of_a_multimodal_model_is_loaded_alone(
    multimodal: tuple[Path, nn.Module], layout: str
) -> None:
    folder, whole = multimodal
    path = folder / "model.safetensors"
    if layout == "as saved":  # the installed transformers' own names
        named = load_file(path)
        outer = "language_model.model."
        renamed = {name.replace(outer, "model.language_model.", 1): t for name, t in named.items()}
        assert renamed.keys() != named.keys() or not any(n.startswith(outer) for n in named)
        save_file(renamed, path, metadata={"format": "pt"})
    model = load_model(folder, torch.float32)
    assert type(model).__name__ == "Gemma3ForCausalLM"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, whole(ids).logits, atol=1e-6)
    chosen = cell(folder)
    preflight([chosen])
    assert read_metadata(chosen)["weights"] == {"text_part_of": "gemma3"}
    architecture = architecture_of(chosen)
    assert (architecture.family, architecture.part_of) == ("gemma3_text", "gemma3")
    assert architecture.parameters == sum(p.numel() for p in model.parameters())
    (title,) = (line for line in summary(estimate([chosen], []), {}) if "parameters" in line)
    assert "gemma3_text (text part of gemma3)" in title


def test_a_text_part_that_is_no_model_of_its_own_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'qwen2_5_vl' is a multimodal model whose text part"):
        configured({"model_type": "qwen2_5_vl", "text_config": {"hidden_size": 16}}, "there")


@pytest.fixture
def gpt2(tmp_path: Path, untrained: Path) -> Path:  # noqa: F811
    """GPT-2 as it is published: matrices (d_in x d_out), names without the outermost module."""
    config = tiny_config("gpt2")
    config.vocab_size, config.n_positions = 1000, 64
    torch.manual_seed(0)
    folder = tmp_path / "gpt2"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = folder / "model.safetensors"
    stored = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    save_file(stored, path, metadata={"format": "pt"})
    for file in untrained.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def test_names_in_files_without_the_outermost_module(gpt2: Path) -> None:
    preflight([cell(gpt2)])
    name = "transformer.h.1.mlp.c_proj.weight"
    files = CheckpointFiles(gpt2)
    files.require([name])
    assert torch.equal(files.tensor(name), load_model(gpt2, torch.float32).get_parameter(name))
    assert stored_name("a.b", ["b", "c"]) == "b" and stored_name("a.b", ["c"]) == "a.b"


def test_transposed_matrices_are_exported_as_the_model_keeps_them(
    gpt2: Path, tmp_path: Path
) -> None:
    chosen = cell(gpt2)
    editable = EditableModel(load_model(gpt2, torch.float32), None, ("down:1",))
    (name,) = editable.modules
    value = editable.weights.read(name) + torch.randn(16, 24)
    folder = _write_checkpoint(chosen, gpt2, {name: value}, tmp_path / "edited", {})
    edited = load_model(folder, torch.float32).get_parameter(f"{name}.weight")
    assert edited.shape == (24, 16) and torch.equal(edited, value.T)
    (original,) = _originals(chosen, gpt2, [name]).values()
    assert torch.equal(original, load_model(gpt2, torch.float32).get_parameter(f"{name}.weight"))


def test_a_tensor_that_is_not_there_is_never_made_up(gpt2: Path) -> None:
    path = gpt2 / "model.safetensors"
    stored = load_file(path)
    del stored["h.1.ln_2.weight"]
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack 1 of the model's tensors .*h.1.ln_2.weight"):
        load_model(gpt2, torch.float32)


def test_a_wrong_shape_is_still_found(gpt2: Path) -> None:
    chosen = cell(gpt2)
    stored = {"h.0.mlp.c_proj.weight": (16, 24), "h.1.mlp.c_proj.weight": (24, 16)}
    with pytest.raises(CheckpointError, match=r"c_proj' should be a matrix \(24, 16\).*\(16, 24\)"):
        check_modules(chosen, stored)


# Published sizes, in millions of parameters, with what tells them apart from Llama.
PUBLISHED: dict[str, tuple[dict[str, Any], float]] = {
    "qwen3": (
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
         "vocab_size": 151936, "tie_word_embeddings": False}, 8190.7,
    ),
    "phi3": (
        {"hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40,
         "num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 100352,
         "tie_word_embeddings": False, "pad_token_id": None}, 14659.5,
    ),
    "gpt_neox": (
        {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
         "num_attention_heads": 32, "vocab_size": 50432, "use_parallel_residual": True}, 6857.3,
    ),
    "olmo2": (
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "vocab_size": 100352}, 7298.6,
    ),
    "gpt2": ({"n_embd": 1600, "n_layer": 48, "n_head": 25}, 1557.6),
}  # fmt: skip


@pytest.mark.parametrize(
    "family",
    [
        f if f in ("gpt_neox", "gpt2") else pytest.param(f, marks=pytest.mark.long)
        for f in PUBLISHED
    ],
)
def test_parameters_are_those_of_the_published_models(family: str, tmp_path: Path) -> None:
    assert family in {**LISTED, **UNLIKE}
    sizes, millions = PUBLISHED[family]
    folder = tmp_path / family
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": family, **sizes}))
    chosen: Cell = cell(folder)
    architecture = architecture_of(chosen)
    assert architecture.parameters / 1e6 == pytest.approx(millions, abs=0.1)
    first = next(iter(architecture.target_modules(("down:1",)).values()))
    assert first == (architecture.intermediate, architecture.hidden)
    assert read_config(folder)["model_type"] == architecture.family


def test_a_described_family_in_pickles_runs_from_checkpoint_to_lake(
    gpt2: Path, tmp_path: Path
) -> None:
    """GPT-2 as pickles of transposed matrices: fetched, converted, edited, scored, recorded."""
    in_pickles(gpt2, 2)
    chosen = cell(gpt2, "editors=[{editor: ft, settings: {steps: 2, modules: ['down:1']}}]")
    preflight([chosen])
    locations = RunPaths(lake=str(tmp_path / "lake"), cache=str(tmp_path / "cache"), tracking="")
    for task in tasks_of([chosen]).values():
        perform(task, locations, silent)
    (record,) = Lake(locations.lake).manifest()
    assert record.done, record.reason
    pickles = record.values["resolved"]["weights"]["pickled"]
    assert sorted(pickles) == [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    delta = export(key_of(chosen), locations, tmp_path / "out", delta=True)
    change = load_file(delta)["transformer.h.1.mlp.c_proj.weight"]
    assert change.shape == (24, 16) and float(change.norm()) > 0
