"""MEMOIR's residual memory: masks, what an edit may change, and who is answered through which."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.editors.memoir import MEMOIR, MEMOIRConfig
from rledit.model import EditableModel
from rledit.overlay import NONE, OverlayError
from rledit.protocols import read
from tests.unit.helpers.text_edits import equip, random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import INNER, tiny_model


def memoir(**settings: Any) -> MEMOIR:
    modules = ("down:2",)
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), modules)
    chosen = {"steps": 5, "k": 6, "overlap": 0.9, "contexts": ("w01 {}",), **settings}
    editor = MEMOIR(model, MEMOIRConfig(modules=modules, **chosen))
    equip(editor)
    return editor


def write(editor: MEMOIR, n: int, first: int = 0) -> None:
    editor.edit(editor.encode(random_edits(n)[first:]))


def prompts(editor: MEMOIR, n: int, seed: int = 0) -> list[Tensor]:
    return [s.prompt for s in editor.encode(random_edits(n, seed)).edit.samples]


def test_an_edited_prompt_overlaps_with_itself_and_every_mask_has_k_inputs() -> None:
    editor = memoir(overlap=1.0)
    write(editor, 5)
    assert editor.memory.masks.sum(1).tolist() == [6] * 5
    editor.memory.forget_prompts()
    assert editor.memory.route(prompts(editor, 5)).tolist() == [0, 1, 2, 3, 4]


def test_a_threshold_above_one_is_the_unedited_model() -> None:
    editor = memoir(overlap=1.01)
    samples = editor.encode(random_edits(5)).edit.samples
    before = [r.nll for r in read(editor.model, samples)]
    write(editor, 5)
    assert float(editor.memory.weight.norm()) > 0
    assert [r.nll for r in read(editor.model, samples)] == before


def test_columns_outside_all_masks_stay_zero() -> None:
    editor = memoir()
    write(editor, 3)
    used = editor.memory.masks.any(0)
    assert 6 <= int(used.sum()) < INNER
    assert not bool(editor.memory.weight[:, ~used].any())
    assert bool(editor.memory.weight[:, used].any())


def test_an_edit_of_a_disjoint_mask_leaves_an_earlier_answer_bit_by_bit() -> None:
    editor = memoir(k=2, overlap=0.9)
    candidates = random_edits(20)
    write(editor, 1)
    masks = editor.memory.mask_of(editor.memory.summaries(prompts(editor, 20)))
    apart = next(i for i in range(1, 20) if not bool((masks[i] & masks[0]).any()))
    first = editor.encode(candidates[:1]).edit.samples
    before = read(editor.model, first)[0].nll
    editor.edit(editor.encode([candidates[apart]]))
    assert read(editor.model, first)[0].nll == before


def test_the_releases_decay_shrinks_what_earlier_edits_wrote() -> None:
    editor = memoir(k=2, reference="official")
    write(editor, 1)
    masks = editor.memory.mask_of(editor.memory.summaries(prompts(editor, 20)))
    apart = next(i for i in range(1, 20) if not bool((masks[i] & masks[0]).any()))
    columns = editor.memory.masks[0]
    norm = float(editor.memory.weight[:, columns].norm())
    editor.edit(editor.encode([random_edits(20)[apart]]))
    # By up to five steps of 1e-5.
    assert norm * (1 - 6e-5) < float(editor.memory.weight[:, columns].norm()) < norm


def test_training_gives_the_target_through_the_mask_of_the_bare_prompt() -> None:
    editor = memoir(steps=30, k=12)
    (sample,) = editor.encode(random_edits(1)).edit.samples
    before = read(editor.model, [sample])[0].nll
    write(editor, 1)
    assert read(editor.model, [sample])[0].nll < before - 1


def test_the_newest_of_contradicting_edits_answers() -> None:
    editor = memoir()
    edit = random_edits(1)[0]
    for _ in range(3):
        editor.edit(editor.encode([edit]))
    assert editor.memory.route(prompts(editor, 1)).tolist() == [2]
    assert editor.memory.right(0, 2)
    assert not editor.memory.right(0, NONE)


def test_masks_do_not_hang_on_the_first_token_where_it_is_left_out() -> None:
    inputs = torch.randn(5, INNER, generator=torch.Generator().manual_seed(0))
    outlier = inputs.clone()
    outlier[0] *= 1000
    memory = memoir().memory
    assert torch.equal(memory.summarise(inputs), memory.summarise(outlier))
    assert torch.equal(memory.summarise(outlier[:1]), outlier[0].double())
    released = memoir(reference="official").memory
    assert not torch.equal(released.summarise(inputs), released.summarise(outlier))


def test_the_permutation_is_the_seeds_and_comes_back_with_the_state() -> None:
    one, other = memoir(), memoir(seed=1)
    assert not torch.equal(one.memory.permutation, other.memory.permutation)
    write(one, 3)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.memory.permutation, one.memory.permutation)
    asked = prompts(one, 12, seed=3)
    assert torch.equal(one.memory.route(asked), other.memory.route(asked))


def test_the_background_is_of_unrelated_prompts_and_is_taken_once() -> None:
    editor = memoir()
    write(editor, 1)
    known = editor.memory.background.clone()
    assert bool(known.any())
    write(editor, 3, first=1)
    assert torch.equal(editor.memory.background, known)


def test_a_mask_wider_than_the_linear_is_refused() -> None:
    with pytest.raises(OverlayError, match=r"k = 25 inputs does not fit .* which has 24"):
        memoir(k=INNER + 1)
