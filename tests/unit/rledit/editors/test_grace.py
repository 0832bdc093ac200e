"""GRACE's codebook: which entry an edit gets, who it answers, and what its value does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rledit.editors.codebook import mean_label
from rledit.editors.grace import GRACE, MARGIN, GRACEConfig
from rledit.model import EditableModel
from rledit.overlay import NONE
from rledit.protocols import read
from rledit.records import Edit
from rledit.tokenization import Sample
from tests.unit.helpers.text_edits import random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import double_arithmetic, tiny_model


def grace(layer: int = 2, **settings: Any) -> GRACE:
    modules = (f"down:{layer}",)
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), modules)
    chosen = {"steps": 2, "lr": 0.1, "radius": 1.0, **settings}
    return GRACE(model, GRACEConfig(modules=modules, **chosen))


def write(editor: GRACE, *edits: Edit) -> dict[str, float]:
    return editor.edit(editor.encode(edits))


def prompts(editor: GRACE, edits: list[Edit]) -> list[Tensor]:
    return [s.prompt for s in editor.encode(edits).edit.samples]


def distance(editor: GRACE, one: Edit, other: Edit) -> float:
    first, second = editor.memory.summaries(prompts(editor, [one, other]))
    return float((first - second).norm())


def states(editor: GRACE, edit: Edit) -> Tensor:
    """(tokens, d_out) outputs of the linear for a prompt with its answer."""
    (sample,) = editor.encode([edit]).edit.samples
    found: list[Tensor] = []
    linear = editor.model.linear(editor.module)
    handle = linear.register_forward_hook(lambda *args: found.append(args[2].detach()))
    (micro_batch,) = editor.model.micro_batches([sample])
    editor.model.prefix_cache.logits(micro_batch, narrow=False)
    handle.remove()
    return found[0][0]


def test_far_edits_become_entries_of_their_own_with_the_first_radius() -> None:
    editor = grace(radius=1e-3)
    edits = random_edits(5)
    assert write(editor, *edits)["edits_added"] == 5
    assert editor.memory.radii.tolist() == [1e-3] * 5
    assert editor.memory.owners == list(range(5))
    assert editor.memory.route(prompts(editor, edits)).tolist() == list(range(5))


def test_two_targets_part_a_ball_and_each_key_finds_its_own() -> None:
    one, other = random_edits(2)
    editor = grace(radius=50.0)
    assert write(editor, one, other)["edits_split"] == 1
    apart = distance(editor, one, other)
    first, second = editor.memory.radii.tolist()
    assert (first, second) == (pytest.approx(apart / 2 - MARGIN), pytest.approx(apart / 2))
    assert first + second < apart
    assert editor.memory.route(prompts(editor, [one, other])).tolist() == [0, 1]


def test_an_equal_target_widens_the_ball_and_adds_nothing() -> None:
    one, other = random_edits(2)
    other = replace(other, target=one.target)
    # The prompts are of unequal length: the release would part them.
    assert len(one.prompt.split()) != len(other.prompt.split())
    editor = grace(radius=0.6)
    apart = distance(editor, one, other)
    editor = grace(radius=0.6 * apart)
    found = write(editor, one, other)
    assert (found["edits_added"], found["edits_widened"], editor.memory.entries) == (1, 1, 1)
    assert float(editor.memory.radii[0]) == pytest.approx(apart)
    assert editor.memory.owners == [0, 0]
    assert editor.memory.route(prompts(editor, [one, other])).tolist() == [0, 0]
    released = grace(radius=0.6 * apart, reference="official")
    assert write(released, one, other)["edits_split"] == 1


def test_the_release_takes_targets_of_equal_mean_for_one() -> None:
    def sample(prompt: int, *target: int) -> Sample:
        ids = torch.arange(prompt + len(target) - 1)
        labels = torch.full_like(ids, -100)
        labels[prompt - 1 :] = torch.tensor(target)
        return Sample(ids, labels)

    assert mean_label(sample(3, 4, 8)) == mean_label(sample(3, 5, 7))
    assert mean_label(sample(3, 4, 8)) != mean_label(sample(4, 4, 8))


def test_the_newest_of_contradicting_edits_is_the_one_that_answers() -> None:
    edit = random_edits(1)[0]
    targets = ("w01", "w02", "w03")
    editor = grace(only_errors=False)
    for target in targets:
        write(editor, replace(edit, target=target))
    assert editor.memory.route(prompts(editor, [edit])).tolist() == [2]
    assert not editor.memory.right(0, 2)
    assert editor.memory.right(2, 2)


def test_a_radius_of_zero_answers_edited_prompts_only() -> None:
    edits = random_edits(6)
    editor = grace(radius=0.0)
    write(editor, *edits)
    editor.memory.forget_prompts()
    assert editor.memory.route(prompts(editor, edits)).tolist() == list(range(6))
    others = random_edits(12, seed=3)
    assert (editor.memory.route(prompts(editor, others)) == NONE).all()


def test_larger_radii_never_lose_an_answered_prompt() -> None:
    edits, asked = random_edits(6), random_edits(30, seed=5)
    editor = grace(radius=1e-3)
    write(editor, *edits)
    answered = torch.zeros(30, dtype=torch.bool)
    for radius in (1e-3, 0.5, 1.0, 2.0, 4.0):
        editor.memory.radii.fill_(radius)
        now = editor.memory.route(prompts(editor, asked)) >= 0
        assert bool((now | ~answered).all())
        answered = now
    assert bool(answered.any())


def test_only_the_end_of_the_prompt_is_replaced() -> None:
    edit = replace(random_edits(3)[2], target="w01 w02 w03")
    editor = grace()
    plain = states(editor, edit)
    write(editor, edit)
    end = len(prompts(editor, [edit])[0]) - 1
    assert end > 0
    edited = states(editor, edit)
    assert torch.equal(edited[:end], plain[:end])
    assert torch.equal(edited[end], editor.memory.values[0])
    assert torch.equal(edited[end + 1 :], plain[end + 1 :])
    everywhere = grace(reference="official")
    write(everywhere, edit)
    changed = states(everywhere, edit)
    assert torch.equal(changed[: end + 1], everywhere.memory.values.expand(end + 1, -1))
    assert torch.equal(changed[end + 1 :], plain[end + 1 :])
    always = grace(replaces="all")
    write(always, edit)
    assert torch.equal(states(always, edit), always.memory.values.expand(len(plain), -1))


def test_a_value_is_trained_until_the_target_is_given() -> None:
    edit = replace(random_edits(1)[0], target="w05")
    editor = grace(steps=60, lr=1.0)
    (sample,) = editor.encode([edit]).edit.samples
    before = read(editor.model, [sample])[0].nll
    found = write(editor, edit)
    after = read(editor.model, [sample])[0]
    assert found["final_loss"] < before / 2
    assert after.predicted.tolist() == after.expected.tolist()


def test_values_of_a_batch_are_adam_s_on_each_edit_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against whole passes of the model with the value in the place of the linear's output."""
    double_arithmetic(monkeypatch)
    one, other = random_edits(2)
    edits = [replace(one, target="w05"), replace(other, target="w06 w07 w08")]
    editor = grace(steps=4, lr=0.3, radius=1e-3, only_errors=False)
    begun = torch.Generator().manual_seed(editor.config.seed)
    found = write(editor, *edits)
    written = editor.memory.values.clone()
    editor.memory.empty()  # so that the model is the unedited one below
    final = []
    for i, edit in enumerate(edits):
        (sample,) = editor.encode([edit]).edit.samples
        value = torch.rand(16, generator=begun).double().requires_grad_()
        adam = torch.optim.Adam([value], lr=0.3)
        end = len(sample.prompt) - 1

        def placed(
            _: Any, __: Any, output: Tensor, value: Tensor = value, end: int = end
        ) -> Tensor:
            return torch.cat([output[:, :end], value[None, None], output[:, end + 1 :]], 1)

        handle = editor.model.linear(editor.module).register_forward_hook(placed)
        for _ in range(4):
            logits = editor.model.model(input_ids=sample.input_ids[None]).logits[0]
            loss = F.cross_entropy(logits[sample.answer_positions], sample.answer_ids)
            adam.zero_grad()
            loss.backward()
            adam.step()
        handle.remove()
        final.append(float(loss.detach()))
        assert torch.allclose(written[i], value.detach(), atol=1e-9)
    assert found["final_loss"] == pytest.approx(sum(final) / 2, rel=1e-9)


def test_what_the_model_knows_is_not_written() -> None:
    edit = random_edits(1)[0]
    editor = grace()
    (sample,) = editor.encode([edit]).edit.samples
    token = int(read(editor.model, [sample])[0].predicted[0])
    known = replace(edit, target=editor.model.encoder.tokenizer.decode([token]))
    assert write(editor, known)["edits_known"] == 1
    assert (editor.memory.entries, editor.memory.owners) == (0, [NONE])
    assert editor.memory.right(0, NONE)
    always = grace(only_errors=False)
    assert write(always, known)["edits_added"] == 1


def test_an_edit_that_an_earlier_one_of_its_batch_answers_is_looked_at_again() -> None:
    """Within a batch as one at a time: the second of two equal edits finds the first's value."""
    edit = replace(random_edits(1)[0], target="w05")
    editor = grace(steps=60, lr=1.0)
    found = write(editor, edit, edit)
    assert (found["edits_added"], found["edits_known"]) == (1, 1)
    assert editor.memory.owners == [0, 0]


def test_warm_values_begin_with_what_the_linear_gives() -> None:
    edit = random_edits(1)[0]
    editor = grace(start="warm", steps=0)
    end = len(prompts(editor, [edit])[0]) - 1
    plain = states(editor, edit)[end]
    write(editor, edit)
    assert torch.allclose(editor.memory.values[0], plain, rtol=1e-9)


def test_keys_are_told_apart_where_their_distance_is_small() -> None:
    """Differences in float64: as |a|² + |b|² − 2ab in float32, a thousandth is lost at norm 10."""
    editor = grace()
    key = torch.full((24,), 2.0)
    near = key.clone()
    near[0] += 1e-3
    sample = editor.encode(random_edits(1)).edit.samples[0]
    editor.memory.add(key, torch.zeros(16), 1e-2, sample)
    _, found = editor.memory.nearest(near[None])
    assert float(found) == pytest.approx(1e-3, rel=1e-3)
