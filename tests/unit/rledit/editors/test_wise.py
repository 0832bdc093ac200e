"""WISE's side memories: what a shard may change, who is routed to it, and how shards are merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.editors.side_memories import activation_of, ties
from rledit.editors.wise import WISE, WISEConfig
from rledit.families import FAMILIES, family_of
from rledit.model import EditableModel
from rledit.overlay import NONE
from rledit.protocols import read
from rledit.step_size import SettingError
from tests.unit.helpers.text_edits import equip, random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model


def wise(**settings: Any) -> WISE:
    modules = ("down:2",)
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), modules)
    chosen = {"steps": 4, "alpha": 0.1, "beta": 5.0, "gamma": 5.0, "contexts": ("w01 {}",),
              "save_freq": 2, "merge_freq": 4, **settings}  # fmt: skip
    editor = WISE(model, WISEConfig(modules=modules, **chosen))
    equip(editor)
    return editor


def write(editor: WISE, n: int, first: int = 0) -> None:
    editor.edit(editor.encode(random_edits(n)[first:]))


def prompts(editor: WISE, n: int, seed: int = 0) -> list[Tensor]:
    return [s.prompt for s in editor.encode(random_edits(n, seed)).edit.samples]


def test_entries_outside_the_mask_keep_the_weight_where_nothing_decays() -> None:
    editor = wise(save_freq=6, merge_freq=6, mask_ratio=0.2)
    write(editor, 3)
    mask = editor._mask().bool()
    changed = editor.memory.current != 0
    assert bool(changed.any())
    assert not bool((changed & ~mask).any())
    assert float(mask.double().mean()) == pytest.approx(0.2, abs=0.06)
    released = wise(save_freq=6, merge_freq=6, mask_ratio=0.2, reference="official")
    write(released, 3)
    outside = released.memory.current[~mask] / released._weight()[~mask]
    # Towards zero, all by the same share: 3 edits of up to 4 steps of 1e-5.
    assert bool((outside < 0).all())
    assert float(outside.std()) < 1e-9
    assert 0 < -float(outside.mean()) <= 3 * 4 * 1e-5 + 1e-9


def test_shards_have_masks_of_their_own_that_a_resumed_stream_finds_again() -> None:
    editor = wise()
    first = editor._mask()
    assert torch.equal(first, editor._mask())
    write(editor, 2)
    assert editor.memory.shard == 1
    second = editor._mask()
    assert not torch.equal(first, second)
    resumed = wise()
    resumed.load_state_dict(editor.state_dict())
    assert torch.equal(resumed._mask(), second)
    assert not torch.equal(wise(seed=1)._mask(), first)


def test_an_infinite_ratio_is_the_unedited_model() -> None:
    editor = wise(ratio=float("inf"))
    samples = editor.encode(random_edits(5)).edit.samples
    before = [r.nll for r in read(editor.model, samples)]
    write(editor, 5)
    assert (editor.memory.route([s.prompt for s in samples]) == NONE).all()
    assert [r.nll for r in read(editor.model, samples)] == before


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_release_holds_prompts_against_the_models_own_activation(family: str) -> None:
    model = EditableModel(tiny_model(family), None, ("down:2",))
    parts = family_of(model.model)
    mlp = model.model.get_submodule(parts.layers)[2].get_submodule(parts.mlp)
    (own,) = (m for name, m in mlp.named_children() if name.startswith("act"))
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(activation_of(model)(x), own(x))


def test_where_no_activation_is_named_the_release_is_refused() -> None:
    model = EditableModel(tiny_model("bloom"), None, ("down:2",))
    with pytest.raises(SettingError, match="of bloom names none; set statistic to shift"):
        WISE(model, WISEConfig(modules=("down:2",), contexts=(), reference="official"))
    WISE(model, WISEConfig(modules=("down:2",), contexts=()))


def test_the_memory_that_moves_a_prompt_most_answers_where_it_is_over_its_threshold() -> None:
    editor = wise()
    write(editor, 3)
    memory = editor.memory
    assert memory.entries == 2
    summaries = memory.summaries(prompts(editor, 12, seed=4))
    rows = memory.prompt_rows(summaries)
    stored, current = memory.moved(rows, memory.stored[0]), memory.moved(rows, memory.current)
    for i, entry in enumerate(memory.decide(summaries).tolist()):
        passing = {
            place: float(delta[i])
            for place, delta, limit in (
                (0, stored, float(memory.thresholds[0])),
                (1, current, memory.threshold),
            )
            if delta[i] > memory.ratio * limit
        }
        assert entry == (max(passing, key=passing.__getitem__) if passing else NONE)


def test_the_release_lets_a_stored_memory_down_for_a_current_one_under_its_threshold() -> None:
    editor = wise()
    write(editor, 3)
    memory = editor.memory
    summaries = memory.summaries(prompts(editor, 3))
    memory.thresholds[0] = 0.0
    memory.threshold = 1e9
    memory.current = 2 * memory.stored[0]
    assert memory.decide(summaries).tolist() == [0, 0, 0]
    memory.rivals = "current"
    assert memory.decide(summaries).tolist() == [NONE] * 3


def test_full_shards_are_stored_and_merged_on_time() -> None:
    editor = wise()
    memory = editor.memory
    counts = []
    for i in range(7):
        write(editor, i + 1, first=i)
        counts.append((len(memory.stored), memory.under_way, memory.shard))
    assert counts == [
        (0, True, 0), (1, False, 1), (1, True, 1), (1, False, 2), (1, True, 2), (2, False, 3),
        (2, True, 3),
    ]  # fmt: skip
    assert memory.place_of == [0, 0, 1]
    assert memory.right(0, 0)
    assert memory.right(3, 0)
    assert memory.right(5, 1)
    assert memory.right(6, 2)
    assert not memory.right(6, 0)
    single = wise(variant="merge")
    write(single, 8)
    assert len(single.memory.stored) == 1
    assert single.memory.place_of == [0, 0, 0, 0]


def test_a_merged_memory_has_the_smallest_threshold_of_its_shards() -> None:
    editor = wise(save_freq=1, merge_freq=3)
    write(editor, 2)
    seen = editor.memory.thresholds.tolist()
    write(editor, 3, first=2)
    assert float(editor.memory.thresholds) <= min(seen)


def test_merging_equal_memories_gives_that_memory_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    same = deltas[:1].repeat(3, 1, 1)
    assert torch.allclose(ties(same, 1.0), deltas[0])
    assert torch.equal(ties(deltas, 0.5), ties(deltas[[2, 0, 1]], 0.5))


def test_merging_keeps_large_entries_and_the_sign_of_their_sum() -> None:
    deltas = torch.tensor([[[4.0, -1.0, 0.1]], [[2.0, 3.0, 0.2]], [[-1.0, 2.0, 0.3]]])
    # Of three entries two stay in each; of the first column 4, 2 and −1 the mean of 4 and 2.
    assert ties(deltas, 2 / 3).tolist() == [[3.0, 2.5, 0.0]]


def test_the_decision_is_one_of_the_prompt_not_of_its_company() -> None:
    editor = wise()
    write(editor, 3)
    edits = random_edits(8, seed=6)
    samples = editor.encode(edits).edit.samples
    together = editor.memory.route([s.prompt for s in samples])
    editor.memory.forget_prompts()
    alone = torch.cat([editor.memory.route([s.prompt]) for s in samples])
    assert torch.equal(together, alone)


def test_training_moves_edits_further_than_unrelated_prompts() -> None:
    editor = wise(steps=40, save_freq=8, merge_freq=8)
    edit = random_edits(1)[0]
    (sample,) = editor.encode([edit]).edit.samples
    before = read(editor.model, [sample])[0].nll
    editor.edit(editor.encode([edit]))
    memory = editor.memory
    inside, outside = (
        float(memory.moved(memory.prompt_rows(memory.summaries(own)), memory.current).mean())
        for own in ([sample.prompt], [next(editor.unrelated(0)).prompt])
    )
    assert inside > outside
    assert read(editor.model, [sample])[0].nll < before - 1


def test_templates_come_from_the_unedited_model_and_are_kept() -> None:
    editor = wise(contexts=None, steps=1)
    plain = wise(contexts=None, steps=1)
    write(editor, 1)
    state = editor.state_dict()
    assert editor._templates is not None
    assert len(editor._templates) == 10
    assert all(template.count("{}") == 1 for template in editor._templates)
    plain.load_state_dict(state)
    assert plain._templates == editor._templates


def test_templates_of_several_lines_go_on_after_a_resume() -> None:
    editor, resumed = (wise(contexts=("w01\nw02 {}",), steps=1) for _ in range(2))
    write(editor, 1)
    resumed.load_state_dict(editor.state_dict())
    assert resumed._templates == ("w01\nw02 {}",)
    write(resumed, 2, first=1)


def test_frequencies_that_cut_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="merge_freq .5. must be a multiple of save_freq .2."):
        WISEConfig(modules=("down:2",), save_freq=2, merge_freq=5)
