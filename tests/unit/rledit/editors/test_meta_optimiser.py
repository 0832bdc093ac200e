"""Knobs of the hypernetworks' optimiser: each does what it says, and nothing while it is off."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.editors import TrainableEditor, editor_class
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.model import EditableModel
from rledit.reward import Reward, RewardTerms
from rledit.step_size import SettingError
from tests.unit.helpers.tiny_models import random_batches, tiny_model, two_shapes

SMALL: dict[str, Any] = {
    "rank": 3,
    "n_blocks": 1,
    "initial_step": 1e-2,
    "meta_lr": 1e-2,
    "scalar_lr_factor": 5.0,
    "optimise": "batch",
}


def make(name: str = "rledit", **settings: Any) -> HypernetworkEditor:
    whole = tiny_model("llama")
    modules = two_shapes(whole)
    cls = editor_class(name)
    editor = cls(
        EditableModel(whole, None, modules), cls.Config(modules=modules, **(SMALL | settings))
    )
    assert isinstance(editor, HypernetworkEditor)
    return editor


def parameters(editor: HypernetworkEditor) -> dict[str, Tensor]:
    return {
        f"{shape} {name}": value.detach().clone()
        for shape, network in editor.networks.items()
        for name, value in network.named_parameters()
    }


def by_batch(editor: TrainableEditor, n: int = 4) -> Any:
    """Train on a trajectory of n batches, stopping after each."""
    return editor.train_batches(random_batches(n, 4, seed=1))


def test_the_learning_rate_rises_over_the_warm_up() -> None:
    editor = make(warmup_steps=4)
    rates = []
    for _ in by_batch(editor, 6):
        rates.append([group["lr"] for group in editor.optimiser.param_groups])
    shares = [0.25, 0.5, 0.75, 1, 1, 1]
    assert [rate[0] for rate in rates] == pytest.approx([1e-2 * share for share in shares])
    assert [rate[1] for rate in rates] == pytest.approx([5e-2 * share for share in shares])
    assert editor.training_measures["learning_rate"] == pytest.approx(1e-2)


def test_a_first_step_of_a_warm_up_is_a_share_of_the_step() -> None:
    """Adam's first step is the learning rate in every entry."""
    slow, fast = make(warmup_steps=4), make()
    start = parameters(slow)
    for editor in (slow, fast):
        next(by_batch(editor))
    one, other = parameters(slow), parameters(fast)
    moved = [name for name in start if not other[name].equal(start[name])]
    assert moved
    for name in moved:
        assert torch.allclose(one[name] - start[name], (other[name] - start[name]) / 4, atol=1e-8)


def test_decay_shrinks_the_matrices_alone() -> None:
    decayed, plain = make(weight_decay=0.5), make()
    start = parameters(plain)
    for editor in (decayed, plain):
        next(by_batch(editor))
    one, other = parameters(decayed), parameters(plain)
    for name, value in start.items():
        if name.endswith((".A", ".B")):
            # AdamW: lr times decay times the weight, beside the step.
            assert torch.allclose(one[name], other[name] - 1e-2 * 0.5 * value, atol=1e-9), name
        else:
            assert one[name].equal(other[name]), name
    assert any(name.endswith(".A") and value.abs().max() > 0 for name, value in start.items())


def test_the_mean_of_the_weights_is_what_edits() -> None:
    editor = make(average=0.9)
    mean = parameters(editor)
    for k, _ in enumerate(by_batch(editor), start=1):
        decay = min(0.9, (1 + k) / (10 + k))
        now = parameters(editor)
        mean = {name: decay * mean[name] + (1 - decay) * now[name] for name in mean}
    raw = parameters(editor)
    with editor.edits_aside():
        shown = parameters(editor)
    assert all(torch.allclose(shown[name], mean[name], atol=1e-12) for name in mean)
    assert not all(shown[name].equal(raw[name]) for name in mean)
    assert all(parameters(editor)[name].equal(raw[name]) for name in mean)
    # It is what is kept of the training, and what edits from then on.
    other = make()
    other.load_state_dict(editor.state_dict())
    assert all(parameters(other)[name].equal(shown[name]) for name in mean)
    # Training goes on from the weights, not from their mean.
    plain = make()
    list(by_batch(plain))
    assert all(parameters(plain)[name].equal(raw[name]) for name in mean)
    # Who edits right after the training edits as who has loaded what is kept of it.
    (batch,) = random_batches(1, 4, seed=2)
    before = {name: w.clone() for name, w in other.model.weights.state_dict().items()}
    for each in (editor, other, plain):
        each.edit(batch)
    edited, kept, by_raw = (e.model.weights.state_dict() for e in (editor, other, plain))
    assert all(edited[name].equal(kept[name]) for name in kept)
    assert not any(edited[name].equal(before[name]) for name in before)
    assert not all(edited[name].equal(by_raw[name]) for name in kept)


@pytest.mark.parametrize("name", ["mend_star", "malmen_star"])
def test_who_retrains_goes_on_from_the_mean_loaded_or_not(name: str) -> None:
    settings = {"average": 0.9, "retrain_every": 1, "retrain_batches": 2}
    trained, loaded = (make(name, **settings) for _ in range(2))
    list(by_batch(trained))
    going_on = trained.training_state_dict()
    loaded.load_state_dict(trained.state_dict())
    for editor in (trained, loaded):
        editor.load_training_data(lambda n, seed: random_batches(n, 4, seed=100 + seed))
        for batch in random_batches(3, 4, seed=2):
            editor.edit(batch)
    assert all(parameters(loaded)[k].equal(value) for k, value in parameters(trained).items())
    found, expected = trained.model.weights, loaded.model.weights
    assert all(torch.equal(found.read(n), expected.read(n)) for n in found.names)
    # A training that goes on has the weights beside their mean.
    trained.load_training_state_dict(going_on)
    with trained.edits_aside():
        mean = parameters(trained)
    assert not all(mean[k].equal(value) for k, value in parameters(trained).items())


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(SettingError, match="average: a decay is below 1, not 1"):
        make(average=1.0)


def test_locality_counts_little_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    backward = Reward.backward

    def observed(self: Reward, shifts: Any) -> Any:
        used.append(self.loc_coef)
        terms = backward(self, shifts)
        window = zip(terms.equivalence, terms.divergence, strict=True)
        total = sum(0.95**j * (e + self.loc_coef * d) for j, (e, d) in enumerate(window))
        assert not any(terms.edited)
        assert terms.total == pytest.approx(total)
        return terms

    monkeypatch.setattr(Reward, "backward", observed)
    editor = make(loc_coef=2.0, loc_warmup=4)
    list(by_batch(editor, 6))
    assert used == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_ramps_do_not_begin_again_when_the_network_is_trained_on_the_stream() -> None:
    settings = {"retrain_every": 1, "retrain_batches": 2, "optimise": "batch"}
    ramped = make("malmen_star", warmup_steps=50, loc_warmup=50, **settings)
    plain = make("malmen_star", **settings)
    stream = random_batches(2, 4, seed=7)
    for editor in (ramped, plain):
        editor.load_training_data(lambda n, seed: random_batches(n, 4, seed=seed))
        for batch in stream:
            editor.edit(batch)
    one, other = parameters(ramped), parameters(plain)
    assert all(one[name].equal(other[name]) for name in one)


def test_knobs_that_are_off_change_nothing() -> None:
    """The state of a training is what it was before there were any, in names too."""
    editor = make()
    list(by_batch(editor))
    state = editor.training_state_dict()
    assert not [key for key in state if key.startswith("mean.")]
    assert len(editor.optimiser.param_groups) == 2
    assert [group["lr"] for group in editor.optimiser.param_groups] == [1e-2, 5e-2]


def test_a_cosine_schedule_falls_over_all_training_steps() -> None:
    editor = make(schedule="cosine", warmup_steps=2, train_steps=2)
    rates = []
    for _ in range(2):
        for _ in by_batch(editor, 4):
            rates.append(editor.optimiser.param_groups[0]["lr"])
    assert len(rates) == 8
    assert rates[:2] == pytest.approx([0.5e-2, 1e-2])
    assert all(later < before for before, later in pairwise(rates[2:]))
    assert 0.02e-2 < rates[-1] < 0.15e-2
    resumed = make(schedule="cosine", warmup_steps=2, train_steps=2)
    resumed.load_training_state_dict(editor.training_state_dict())
    assert resumed.training_measures == editor.training_measures


def scored(editor: HypernetworkEditor, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Weights of the older batches' prompts that count in each step of a trajectory of six."""
    steps: list[list[float]] = []
    run = Reward._run

    def noted(self: Reward, items: Any, terms: Any) -> float:
        steps.append([item.token_weight for item in items if item.age])
        return run(self, items, terms)

    monkeypatch.setattr(Reward, "_run", noted)
    for _ in by_batch(editor, 6):
        pass
    return steps


def test_a_share_of_the_window_counts_by_its_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored(make(depth=6), monkeypatch)
    monkeypatch.undo()
    some = scored(make(depth=6, window_share=0.25), monkeypatch)
    assert [len(items) for items in whole] == [0, 8, 16, 24, 32, 40]
    assert 10 < sum(map(len, some)) < 60
    plain = {round(4 * weight, 6) for items in whole for weight in items}
    assert {round(weight, 6) for items in some for weight in items} <= plain


def test_each_trajectory_draws_prompts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that goes on after an interruption draws what it would have drawn."""
    editor = make(depth=6, window_share=0.25)
    first = scored(editor, monkeypatch)
    monkeypatch.undo()
    half = by_batch(editor, 6)
    for _ in range(3):
        next(half)
    saved = editor.training_state_dict()
    rest: list[list[float]] = []
    for into in (editor, make(depth=6, window_share=0.25)):
        if into is not editor:
            into.load_training_state_dict(saved)
        rest.append([])
        run = Reward._run

        def noted(
            self: Reward, items: Any, terms: Any, run: Any = run, drawn: list[float] = rest[-1]
        ) -> float:
            drawn.extend(item.token_weight for item in items if item.age)
            return run(self, items, terms)

        monkeypatch.setattr(Reward, "_run", noted)
        list(half if into is editor else by_batch(into, 6))
        monkeypatch.undo()
    assert rest[0] == rest[1]
    assert rest[0] != [weight for items in first[3:] for weight in items]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_edited_prompts_count_where_the_recipe_has_them(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward is the sum of its three parts, in the losses and in the gradient."""
    found: list[RewardTerms] = []
    gradients: list[Tensor] = []
    backward = Reward.backward

    def observed(self: Reward, shifts: Any) -> RewardTerms:
        config, summed = self._config, 0.0
        alone = {name: torch.zeros_like(shift.right) for name, shift in shifts.items()}
        for part, weight in enumerate((1.0, config.prompt_coef, 2.0)):
            rephrase, prompt, self.loc_coef = (float(part == k) for k in range(3))
            self._config = replace(config, equivalent_coef=rephrase, prompt_coef=prompt)
            copies = {n: s.detached(requires_grad=True) for n, s in shifts.items()}
            summed += weight * backward(self, copies).total
            for name, copy in copies.items():
                assert copy.right.grad is not None
                alone[name] += weight * copy.right.grad
        self._config, self.loc_coef = config, 2.0
        terms = backward(self, shifts)
        assert terms.total == pytest.approx(summed)
        for name, shift in shifts.items():
            torch.testing.assert_close(shift.right.grad, alone[name], rtol=1e-6, atol=1e-9)
            gradients.append(alone[name])
        found.append(terms)
        return terms

    monkeypatch.setattr(Reward, "backward", observed)
    list(by_batch(make(loc_coef=2.0, prompt_coef=0.5, depth=3, window_share=share), 4))
    assert all(terms.edited[0] > 0 for terms in found)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


def test_only_our_recipe_rewards_edited_prompts() -> None:
    def weight(name: str, reference: str) -> float:
        return editor_class(name).Config(modules=("up:1",), reference=reference).prompt_coef

    for name in ("rledit", "malmen", "mend", "hiedit"):
        assert [weight(name, r) for r in ("official", "paper", "converged")] == [0, 0, 1]
    # Its edited prompts are its rephrases.
    assert weight("instructedit", "converged") == 0


def test_a_share_is_refused_where_every_reference_is_renewed() -> None:
    with pytest.raises(SettingError, match="kl_reference: previous"):
        make(reference="official", window_share=0.5)
    with pytest.raises(SettingError, match="above 0 and at most 1"):
        make(window_share=1.5)
