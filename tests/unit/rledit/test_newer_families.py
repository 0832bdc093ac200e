"""Models of current papers, of the true classes at tiny size: what is captured, and what is taken
away. Passes, editors and trainings are compared where all families are, by `FAMILIES`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from pipeline.inputs.model_loading import load_model
from rledit.capture import Tokens, capture
from rledit.editing.export import write_checkpoint
from rledit.editors import editor_class
from rledit.families import UneditableError
from rledit.model import EditableModel, Execution
from tests.reference.capture import reference_capture
from tests.unit.helpers.oracle import relative
from tests.unit.helpers.text_edits import text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_families import tiny_config
from tests.unit.helpers.tiny_models import double_arithmetic, random_batches, tiny_model, two_shapes

CLASSES = {
    "llama3.1": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip


@pytest.mark.parametrize("tokens", ["answer", "all"])
@pytest.mark.parametrize("family", CLASSES)
def test_keys_and_gradients_are_those_of_autograd(
    family: str, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whole padded passes of the model's own forward, one loss group at a time."""
    double_arithmetic(monkeypatch)
    model = tiny_model(family)
    assert type(model).__name__ == CLASSES[family]
    plain = copy.deepcopy(model)
    editable = EditableModel(model, None, two_shapes(model), Execution(token_budget=30))
    phase = random_batches(1, 7, group_size=3)[0].edit
    found = capture(editable, phase, tokens)
    expected, loss = reference_capture(plain, phase, editable.modules, tokens)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    for name in editable.modules:
        assert relative(found.keys[name], expected[name][0]) < 1e-12
        assert relative(found.values[name], expected[name][1]) < 1e-10


def test_scaled_positions_reach_a_pass_that_begins_in_the_middle() -> None:
    """Llama-3.1's, which differ from Llama-3's behind the first few positions."""
    model = EditableModel(tiny_model("llama3.1"), None, ("down:2",), Execution(token_budget=30))
    unscaled = EditableModel(tiny_model("llama"), None, ("down:2",))
    (micro_batch,) = unscaled.micro_batches(random_batches(1, 3)[0].edit.samples)
    with torch.no_grad():
        found = model.prefix_cache.logits(micro_batch)
        whole = [
            model.model(input_ids=s.input_ids[None], use_cache=False).logits[0, s.answer_positions]
            for s in micro_batch.samples
        ]
        assert relative(found, torch.cat(whole)) < 1e-6
        assert relative(found, unscaled.prefix_cache.logits(micro_batch)) > 1e-3


def edited(model: torch.nn.Module, family: str, name: str) -> EditableModel:
    """A model after a batch of edits in all its MLPs' matrices of two layers."""
    modules = two_shapes(model) if name == "ultraedit" else ("down:2",)
    editable = EditableModel(model, tiny_tokenizer(family), modules)
    cls = editor_class(name)
    settings = {"step": 1e-2} if name == "ultraedit" else {"steps": 3, "lr": 1e-2}
    editor = cls(editable, cls.Config(modules=modules, **settings))
    editor.edit(text_batches(editable, 1, 6, 0, editor.group_size)[0])
    return editable


@pytest.mark.parametrize("family", CLASSES)
def test_an_edited_model_is_opened_by_from_pretrained(family: str, tmp_path: Path) -> None:
    model: Any = tiny_model(family).float()
    before = copy.deepcopy(model.state_dict())
    edited(model, family, "ultraedit")
    folder = write_checkpoint(model, tiny_tokenizer(family), tmp_path / "out", metadata={})
    again: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert type(again).__name__ == CLASSES[family]
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    changed = {k for k, value in again.state_dict().items() if not torch.equal(value, before[k])}
    kinds = ("gate_up", "down") if family == "phi3" else ("gate", "down")
    layers = {"gate": (1, 2), "gate_up": (1, 2), "down": (2, 3)}
    assert changed == {
        f"model.layers.{layer}.mlp.{kind}_proj.weight" for kind in kinds for layer in layers[kind]
    }


@pytest.fixture
def multimodal(tmp_path: Path) -> tuple[Path, Any]:
    """A tiny Gemma 3 with a vision tower, on disk and in memory."""
    text = {**tiny_config("gemma3_text").to_dict(), "vocab_size": 100}
    config = Gemma3Config(
        text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=99
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole", model


def test_a_whole_multimodal_model_is_refused_with_what_to_open(
    multimodal: tuple[Path, Any],
) -> None:
    with pytest.raises(UneditableError, match="multimodal.*text model alone"):
        EditableModel(multimodal[1], None, ("down:1",))


def test_the_text_model_of_a_multimodal_checkpoint_is_edited_and_opened_again(
    multimodal: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, whole = multimodal
    model: Any = load_model(folder, "auto")
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, whole(ids).logits, atol=1e-6)
        edited(model, "gemma3_text", "ft")
        out = write_checkpoint(model, tiny_tokenizer("gemma3_text"), tmp_path / "out", metadata={})
        again: Any = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
        assert type(again).__name__ == "Gemma3ForCausalLM"
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert not torch.allclose(again(ids).logits, whole(ids).logits, atol=1e-6)
