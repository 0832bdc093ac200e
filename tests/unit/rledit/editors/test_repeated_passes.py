"""What the steps on an edit have in common is made once, and changes no bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.run.stages.train import batches_of
from rledit.editors import editor_class
from rledit.editors.overlay_editor import OverlayEditor
from rledit.editors.repeated_passes import RepeatedPasses
from rledit.editors.templated_editor import TemplatedEditor
from rledit.model import EditableModel, Execution
from rledit.prefix_cache import PrefixCache
from rledit.tokenization import EditBatch, Encoder
from tests.unit.helpers.text_edits import equip, random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model

MODULES = ("down:2",)
SETTINGS: dict[str, dict[str, Any]] = {
    "grace": {"radius": 0.01},
    "wise": {"alpha": 0.1, "beta": 5.0, "gamma": 5.0, "contexts": ("w01 {}",)},
    "memoir": {"k": 6, "overlap": 0.9, "contexts": ("w01 {}",)},
}


def new(name: str, steps: int = 4, **execution: Any) -> OverlayEditor:
    ready = Execution(**execution)
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), MODULES, ready)
    cls = editor_class(name)
    editor = cls(model, cls.Config(modules=MODULES, steps=steps, **SETTINGS[name]))
    assert isinstance(editor, OverlayEditor)
    equip(editor)
    return editor


def counted(monkeypatch: pytest.MonkeyPatch, cls: type, method: str) -> list[int]:
    calls: list[int] = []
    plain = getattr(cls, method)

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(cls, method, count)
    return calls


@pytest.mark.parametrize("name", SETTINGS)
def test_more_steps_look_for_no_more_prefixes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    for steps in (2, 6):
        editor = new(name, steps)
        batch = editor.encode(random_edits(2))
        with monkeypatch.context() as patch:
            calls = counted(patch, PrefixCache, "prefix_of")
            editor.edit(batch)
        looked.append(len(calls))
    assert 0 < looked[0] == looked[1]


@pytest.mark.parametrize("token_budget", [12, 1000])
def test_repeated_passes_have_the_bits_of_passes_that_are_made_anew(token_budget: int) -> None:
    editor = new("memoir", token_budget=token_budget)
    assert isinstance(editor, TemplatedEditor)
    model, memory = editor.model, editor.memory
    samples = [s for edit in random_edits(4) for s in editor.templated(edit)]
    d_in, d_out = model.shape(editor.module)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    weight = (0.1 * weight).to(model.compute_dtype).requires_grad_()
    n_tokens = sum(len(s.answer_ids) for s in samples)
    passes = RepeatedPasses(model, samples)
    with memory.training(torch.arange(d_in), weight, len(samples)):  # type: ignore[attr-defined]
        found = [editor.likelihood(passes, weight) for _ in range(2)]
        loss, gradient = 0.0, torch.zeros_like(weight)
        for part in passes.parts:
            with torch.enable_grad():
                logits = model.prefix_cache.logits(part.micro_batch).to(model.compute_dtype)
                own = F.cross_entropy(logits, part.micro_batch.labels, reduction="sum") / n_tokens
                gradient += torch.autograd.grad(own, weight)[0]
            loss += float(own.detach())
    assert (len(passes.parts) > 1) == (token_budget < 1000)
    assert float(gradient.norm()) > 0
    for again, of_weight in found:
        assert again == loss
        assert torch.equal(of_weight, gradient)


@pytest.mark.parametrize("name", ["wise", "memoir"])
def test_of_drawn_prompts_only_those_looked_at_are_tokenised(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the memory is the one that batches tokenised as a whole give."""
    states = []
    edits = random_edits(3)
    for as_text in (False, True):
        editor = new(name)

        def draw(n: int, seed: int, of: OverlayEditor = editor, text: bool = as_text) -> Any:
            drawn = random_edits(4 * n, 1000 + seed)
            parts = [drawn[i : i + 4] for i in range(0, len(drawn), 4)]
            return [of.encode_drawn(part) if text else of.encode(part) for part in parts]

        editor.load_training_data(draw)
        batch = editor.encode(edits)
        with monkeypatch.context() as patch:
            calls = counted(patch, Encoder, "sample")
            editor.edit(batch)
        states.append(editor.state_dict())
        if as_text and name == "wise":
            # The bare prompt and one template of each edit, and one unrelated prompt.
            assert len(calls) == 3 * len(edits)
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_a_pipeline_draws_text_for_editors_that_look_at_little_of_it() -> None:
    edits = random_edits(4)
    (drawn,) = batches_of(new("memoir"), edits, 4, "0")
    assert drawn.edits == tuple(edits)
    assert not len(drawn.edit) and not len(drawn.unrelated)
    (whole,) = batches_of(new("grace"), edits, 4, "0")
    assert len(whole.edit) == len(whole.unrelated) == 4


def test_draws_that_are_made_of_tokens_and_those_without_unrelated_prompts_are_taken() -> None:
    editor = new("wise")
    assert isinstance(editor, TemplatedEditor)
    whole = editor.encode(random_edits(3))
    tokens = EditBatch(whole.edit, whole.equivalent, whole.unrelated)
    editor.load_training_data(lambda n, seed: [tokens])
    assert list(editor.unrelated(0)) == list(whole.unrelated.samples)
    lacking = [replace(edit, locality=()) for edit in random_edits(3)]
    editor.load_training_data(lambda n, seed: [editor.encode_drawn(lacking)])
    found = [s.input_ids.tolist() for s in editor.unrelated(0)]
    assert found == [s.input_ids.tolist() for s in whole.edit.samples]


def test_a_mask_is_drawn_once_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = new("wise")
    batch = editor.encode(random_edits(4))
    calls = counted(monkeypatch, torch, "rand")  # type: ignore[arg-type]
    editor.edit(batch)
    assert len(calls) == 1
