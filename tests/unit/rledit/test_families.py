"""Families found from their classes: every one under the contracts and exactness of the listed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from rledit.editors import EDITORS
from rledit.families import FAMILIES, UneditableError, describe, edited_modules, family_of
from rledit.locate.contexts import Contexts
from rledit.locate.keys import block_values, stream_gain
from rledit.locate.requests import make_requests
from rledit.model import EditableModel, Execution
from rledit.shift import LowRankShift
from tests.reference.injected import injected
from tests.unit.helpers.oracle import relative
from tests.unit.helpers.text_edits import random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_families import RARER, UNLIKE, tiny_config
from tests.unit.helpers.tiny_models import random_batches, tiny_model, two_shapes
from tests.unit.helpers.turns import by_turns
from tests.unit.rledit.editors.test_editors import (
    EDITING,
    SETTINGS,
    batches,
    is_overlay,
    make,
    matrices,
    same,
)

# One editor of each mechanism; the others differ from these in what they solve.
MECHANISMS = ("ultraedit", "rledit", "rome", "memit", "ft", "memoir")
ALWAYS = ("rledit", "memit")
RARE = [pytest.param(name, marks=pytest.mark.slow) for name in RARER]
ALL = [*UNLIKE, *RARE]
PLACES = (("down:0",), ("down:2",), ("down:3",))


def _sweep() -> list[object]:
    """Every family: all day by a mechanism, in `make test` by two, beyond by all editors."""
    found = []
    for i, family in enumerate((*UNLIKE, *RARER)):
        for editor in EDITING:
            usual = editor in ALWAYS and family in UNLIKE
            often = editor == ALWAYS[i % 2] or (editor in MECHANISMS and i == 0)
            quick = often and family in UNLIKE
            marks = () if quick else pytest.mark.long if usual else pytest.mark.slow
            found.append(pytest.param(family, editor, marks=marks))
    return found


@pytest.mark.parametrize(("family", "name"), _sweep())
def test_every_editor_on_every_family(
    family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes the declared matrices and nothing else, finite, and restores them bit by bit."""
    # Without a norm before the MLP, keys are as large as the stream.
    monkeypatch.setitem(SETTINGS, "threshold", 10.0)
    editor = make(name, family)
    before = matrices(editor)
    for batch in batches(editor, 2):
        metrics = editor.edit(batch)
        assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())
    after = matrices(editor)
    assert all(bool(value.isfinite().all()) for value in after.values())
    changed = {k.removesuffix(".weight") for k in before if not torch.equal(before[k], after[k])}
    declared = {"answers"} if is_overlay(editor) else set(editor.model.modules)
    assert changed <= declared
    assert len(changed) >= getattr(editor, "active_modules", len(declared))
    with editor.model.weights.unedited():
        assert same(before, matrices(editor))
    weights, own = editor.model.weights.state_dict(), editor.state_dict()
    editor.model.weights.restore()
    assert same(before, matrices(editor))
    editor.model.weights.load_state_dict(weights)
    if is_overlay(editor):  # whose edits are its own state
        editor.load_state_dict(own)
    assert same(after, matrices(editor))


def _plain(model: EditableModel, sample: object) -> Tensor:
    output: Tensor = model.model(input_ids=sample.input_ids[None], use_cache=False).logits  # type: ignore[attr-defined]
    return output[0, sample.answer_positions]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("family", "modules"),
    [
        *by_turns(UNLIKE, [(one,) for one in PLACES]),
        *(pytest.param(f, one, marks=pytest.mark.slow) for f in RARER for one in PLACES),
    ],
)
def test_a_restarted_trunk_equals_the_whole_model(family: str, modules: tuple[str, ...]) -> None:
    """Also where gradients, norms, windows, scales, caps and positions are the family's own."""
    model = EditableModel(tiny_model(family), None, modules, Execution(token_budget=30))
    samples = random_batches(1, 7)[0].edit.samples
    for narrow in (True, False):
        for micro_batch in model.micro_batches(samples):
            with torch.no_grad():
                found = model.prefix_cache.logits(micro_batch, narrow=narrow)
                expected = torch.cat([_plain(model, sample) for sample in micro_batch.samples])
            # Norms of these models round to float32 on their way.
            assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("family", ALL)
def test_injected_and_merged_shifts_are_one(family: str) -> None:
    whole = tiny_model(family)
    modules = two_shapes(whole)
    samples = random_batches(1, 7)[0].edit.samples
    results: list[Tensor] = []
    for merged in (False, True):
        model = EditableModel(copy.deepcopy(whole), None, modules)
        generator = torch.Generator().manual_seed(1)
        options = {"generator": generator, "dtype": torch.float64}
        shifts = {
            name: LowRankShift(
                0.1 * torch.randn(5, model.shape(name)[0], **options),  # type: ignore[call-overload]
                torch.randn(5, model.shape(name)[1], **options),  # type: ignore[call-overload]
            )
            for name in model.modules
        }
        (micro_batch,) = model.micro_batches(samples)
        if merged:
            unedited = model.prefix_cache.logits(micro_batch)
            for name, shift in shifts.items():
                model.weights.add(name, shift)
            results.append(torch.cat([_plain(model, sample) for sample in micro_batch.samples]))
            assert relative(unedited, results[-1]) > 1e-2
        else:
            with injected(model, shifts):
                results.append(model.prefix_cache.logits(micro_batch))
    assert relative(*results) < 1e-5


@pytest.mark.parametrize("family", ALL)
def test_a_change_through_the_mlp_moves_the_stream_as_asked(family: str) -> None:
    """What MEMIT relies on: r in the stream is r times the gain at the linear, norm and scale."""
    model = EditableModel(tiny_model(family), tiny_tokenizer(family), ("down:2",))
    (name,) = model.modules
    requests = make_requests(model.encoder, random_edits(4), Contexts())
    generator = torch.Generator().manual_seed(0)
    before = block_values(model, requests, 2)
    asked = 1e-5 * torch.randn(before.shape, generator=generator, dtype=torch.float64)
    gain = stream_gain(model, requests, name)
    change = asked if gain is None else asked * gain
    moved = []
    for i, request in enumerate(requests):
        row = change[i]

        def add(_: object, __: object, output: Tensor, row: Tensor = row, i: int = i) -> Tensor:
            return output + row

        handle = model.linear(name).register_forward_hook(add)
        moved.append(block_values(model, [request], 2)[0])
        handle.remove()
    found = torch.stack(moved) - before
    if model.family.norm_after_mlp is None:
        assert relative(found, asked) < 1e-2
    else:  # a norm lets only a part of a change through, and turns it no further than that
        cosine = torch.nn.functional.cosine_similarity(found, asked)
        assert bool((cosine > 0.7).all())


@pytest.mark.parametrize("family", [f for f in FAMILIES])
def test_what_is_found_of_the_listed_families_is_what_the_list_says(family: str) -> None:
    found, listed = describe(tiny_model(family).config), FAMILIES[family]
    for name in (
        "layers", "target_modules", "attention", "mlp", "final_norm", "norm_after_mlp",
        "residual_scale", "attention_returns", "layer_returns_tuple",
    ):  # fmt: skip
        assert getattr(found, name) == getattr(listed, name), name


def test_fused_matrices_and_transposed_ones_are_found() -> None:
    assert family_of(tiny_model("phi3")).target_modules == {
        "gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"'phi3' has no 'gate', its gate and up are one fused"):
        edited_modules(tiny_model("phi3"), ["gate:1"])
    with pytest.raises(ValueError, match=r"'down:2-1': no layer is in 2-1; write 1-2"):
        edited_modules(tiny_model("llama"), ["down:2-1", "down:3"])
    gpt2 = EditableModel(tiny_model("gpt2"), None, ("up:1", "down:1"))
    assert [gpt2.shape(name) for name in gpt2.modules] == [(16, 24), (24, 16)]
    assert [gpt2.weights.read(name).shape for name in gpt2.modules] == [(24, 16), (16, 24)]
    assert describe(tiny_config("granite")).residual_scale == 0.22


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("mixtral", {"num_local_experts": 4}, "mixture of experts.*take a dense model"),
        ("qwen3_moe", {"num_experts": 4, "decoder_sparse_step": 2}, "experts .in 1 of 2 layers"),
        ("gpt_oss", {"num_local_experts": 4}, "mixture of experts"),
        ("mamba", {}, "state-space, recurrent or hybrid"),
        ("bamba", {"mamba_n_heads": 2, "mamba_d_head": 16}, "state-space, recurrent or hybrid"),
        ("rwkv", {"attention_hidden_size": 16}, "state-space, recurrent or hybrid"),
        ("t5", {}, "encoder-decoder"),
        ("bart", {}, "encoder-decoder"),
        ("opt", {"word_embed_proj_dim": 16}, "no block of its own: fc1, fc2"),
        ("clip", {}, "no causal language model"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_its_own_reason(
    family: str, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(UneditableError, match=message):
        describe(AutoConfig.for_model(family, **({**SMALL, **sizes} if family != "clip" else {})))


def test_layers_that_hand_on_more_than_hidden_states_are_refused() -> None:
    """Found by comparing with the whole model: here layer 3 adds what layer 0 put out."""
    model = tiny_model("olmo2")
    layers: Any = model.get_submodule("model.layers")
    handed: dict[str, Tensor] = {}
    model.register_forward_pre_hook(lambda *_: handed.clear())
    layers[0].register_forward_hook(lambda _, __, output: handed.update(states=output))

    def look_back(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] + handed.get("states", torch.zeros(())), *args[1:])

    layers[3].register_forward_pre_hook(look_back)
    with pytest.raises(UneditableError, match="hand on more than the hidden states"):
        EditableModel(model, None, ("down:2",))


def test_every_editor_is_swept() -> None:
    assert set(ALWAYS) < set(MECHANISMS) <= set(EDITORS)
