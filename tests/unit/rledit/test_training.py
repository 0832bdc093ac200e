"""Training until a validation stream gains no more: what is validated, kept and left alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rledit.editors import TrainableEditor, editor_class
from rledit.finite import NonFiniteError
from rledit.model import EditableModel, Execution
from rledit.protocols import protocol
from rledit.ranks import Ranks, SingleProcess
from rledit.scoring import Scorer
from rledit.step_size import SettingError
from rledit.stream import StreamScored, run_stream
from rledit.tokenization import EditBatch, Sample
from rledit.training import Training, TrainingEvent
from rledit.validation import Validation, ValidationStream
from tests.unit.helpers.text_edits import random_edits, text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model, two_shapes

SMALL: dict[str, Any] = {
    "rank": 3,
    "n_blocks": 1,
    "initial_step": 1e-2,
    "meta_lr": 1e-2,
    "train_steps": 3,
}
SIZE, LENGTH = 4, 2
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lifelong moments": ("rledit", {"depth": 2}),
    "moments of the trajectory": ("rledit", {"depth": 2, "moments_scope": "trajectory"}),
    "batch by batch": ("rledit", {"optimise": "batch"}),
    "converged": ("rledit", {"reference": "converged"}),
    "averaged": ("rledit", {"average": 0.9, "weight_decay": 0.1, "warmup_steps": 4}),
    "malmen": ("malmen", {}),
    "mend": ("mend", {}),
    "retrained on the stream": ("malmen_star", {"retrain_every": 1, "retrain_batches": 1}),
}
# All day: the most moving parts, another loss, and training while editing.
USUAL = ("averaged", "malmen", "retrained on the stream")


def make(
    case: str, execution: Execution | None = None, ranks: Ranks | None = None, **more: Any
) -> TrainableEditor:
    name, settings = CASES[case]
    whole = tiny_model("llama").float()
    modules = two_shapes(whole)
    model = EditableModel(
        whole, tiny_tokenizer("llama"), modules, execution or Execution(),
        ranks=ranks or SingleProcess(),
    )  # fmt: skip
    cls = editor_class(name)
    editor = cls(model, cls.Config(modules=modules, **(SMALL | settings | more)))
    assert isinstance(editor, TrainableEditor)
    return editor


def draw_of(editor: TrainableEditor) -> Callable[[int], list[list[EditBatch]]]:
    return lambda step: [text_batches(editor.model, LENGTH, SIZE, seed=10 + step)]


def stream_of(editor: TrainableEditor) -> ValidationStream:
    return ValidationStream(editor, random_edits(3 * SIZE, seed=1), SIZE, loc_coef=0.5)


def training_of(editor: TrainableEditor) -> Training:
    return Training(editor, draw_of(editor), stream_of(editor))


def scripted(*scores: float) -> Callable[[TrainableEditor, int], Validation]:
    """A validation that finds these scores, one after another."""
    left: Iterator[float] = iter(scores)

    def validate(_: TrainableEditor, step: int) -> Validation:
        score = next(left)
        return Validation(
            step=step, efficacy=score, generalization=None, specificity_self=None, reward=-score,
            measures={}, seconds=0.0,
        )  # fmt: skip

    return validate


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


@pytest.mark.parametrize(
    "case",
    [case if case in USUAL else pytest.param(case, marks=pytest.mark.long) for case in CASES],
)
def test_validation_leaves_training_as_it_was(case: str) -> None:
    with_it = make(case, patience=9, validate_every=1)
    without = make(case, patience=0)
    validated, plain = training_of(with_it), Training(without, draw_of(without))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    states = [
        with_it.training_state_dict() for e in validated.run() if not (e.validation or e.trial)
    ][:-1]
    assert torch.get_rng_state().equal(before)
    expected = [without.training_state_dict() for _ in plain.run()][:-1]
    assert [found.step for found in validated.validations] == [0, 1, 2, 3]
    assert len(states) == SMALL["train_steps"] * LENGTH - 1 == len(expected)
    assert all(equal(one, other) for one, other in zip(states, expected, strict=True))
    assert validated.curve == plain.curve
    # The prompts of the validation stream are not in the cache that training goes on with.
    assert with_it.model.prefix_cache._cache.keys() == without.model.prefix_cache._cache.keys()
    for name in with_it.model.modules:
        weights = with_it.model.weights
        assert weights.read(name).equal(weights.original(name))


@pytest.mark.parametrize("cache_bytes", [1 << 30, 3000, 0])
def test_a_validation_is_the_stream_that_an_evaluation_would_run(cache_bytes: int) -> None:
    execution = Execution(cache_bytes=cache_bytes)
    editor = make("lifelong moments", execution)
    stream = stream_of(editor)
    for step, trajectories in enumerate(map(draw_of(editor), range(2)), start=1):
        editor.train_step(*trajectories)
        found = stream(editor, step)
        again = stream(editor, step)
        assert replace(again, seconds=0.0) == replace(found, seconds=0.0)
    other = make("lifelong moments", execution)
    other.load_state_dict(editor.state_dict())
    edits = random_edits(3 * SIZE, seed=1)
    scorer = Scorer(other.model, edits, [protocol("token_accuracy")])
    events = list(run_stream(other, edits, SIZE, [3], scorer))
    assert isinstance(events[-1], StreamScored)
    scores = [s for s in events[-1].scores if not s.superseded]
    for name in ("efficacy", "generalization", "specificity_self"):
        values = [value for s in scores if (value := getattr(s, name)) is not None]
        assert getattr(found, name) == pytest.approx(sum(values) / len(values)), name
    assert found.specificity_self != 100
    expected = plain_loss(other, [editor.encode(edits[i : i + SIZE]) for i in (0, 4, 8)])
    assert found.reward == pytest.approx(-expected / 3, rel=1e-4)


def plain_loss(editor: TrainableEditor, batches: list[EditBatch]) -> float:
    """L_e + 0.5 KL of all batches, prompt by prompt on the whole model."""
    model = editor.model

    def log_p(sample: Sample) -> Tensor:
        logits = model.model(sample.input_ids[None]).logits[0, sample.answer_positions]
        return logits.double().log_softmax(-1)

    total = 0.0
    with torch.no_grad():
        for batch in batches:
            for sample, weight in zip(
                batch.equivalent.samples, batch.equivalent.weights, strict=True
            ):
                picked = log_p(sample).gather(1, sample.answer_ids[:, None])
                total -= float(weight * picked.sum())
            for sample, weight in zip(
                batch.unrelated.samples, batch.unrelated.weights, strict=True
            ):
                with model.weights.unedited():
                    reference = log_p(sample)
                divergence = (reference.exp() * (reference - log_p(sample))).sum()
                total += 0.5 * float(weight * divergence)
    return total


def test_training_ends_when_patience_does_and_the_best_state_is_put_back() -> None:
    editor = make("moments of the trajectory", train_steps=9, patience=2, validate_every=1)
    training = Training(editor, draw_of(editor), scripted(50, 60, 55, 60, 70))
    states = {}
    for event in training.run():
        if event.validation:
            states[event.step] = editor.state_dict()
    assert training.ending == "patience" and training.step == 3 and training.patience_left == 0
    assert training.best is not None and training.best.step == 1
    assert equal(editor.state_dict(), states[1]) and not equal(states[1], states[3])
    assert len(training.curve) == 3 and training.batches == 3 * LENGTH


def test_an_untrained_network_that_training_makes_worse_is_kept() -> None:
    editor = make("moments of the trajectory", patience=2, validate_every=1)
    before = editor.state_dict()
    training = Training(editor, draw_of(editor), scripted(50, 40, 30))
    list(training.run())
    assert training.best is not None and training.best.step == 0
    assert equal(editor.state_dict(), before)


def test_the_limit_is_validated_too() -> None:
    editor = make("moments of the trajectory", train_steps=5, patience=9, validate_every=3)
    training = Training(editor, draw_of(editor), scripted(1, 2, 3))
    list(training.run())
    assert [found.step for found in training.validations] == [0, 3, 5]
    assert training.ending == "limit"


def test_small_gains_count_as_none_where_a_least_one_is_asked_for() -> None:
    editor = make("malmen", train_steps=9, patience=2, validate_every=1, min_improvement=1.0)
    training = Training(editor, draw_of(editor), scripted(50, 50.5, 50.9, 99))
    list(training.run())
    assert training.step == 2 and training.best is not None and training.best.step == 0


def test_what_a_training_takes_yet_counts_its_validations_and_trials() -> None:
    """Ten seconds a validation or trial, two a batch: of six batches and four checks to come."""
    more = {"train_steps": 6, "patience": 9, "validate_every": 2, "step_search": [0.5, 2.0]}
    editor = make("moments of the trajectory", **more)
    found = scripted(50, 51, 52, 53, 40, 41)
    training = Training(
        editor, draw_of(editor), lambda e, step: replace(found(e, step), seconds=10.0)
    )
    total, left = 6 * LENGTH, {}
    assert training.seconds_left(total) is None, "nothing is known"
    for event in training.run():
        # As long as it takes by the clock of a slower machine.
        training.seconds = 2.0 * training.batches
        training.seconds += 10.0 * (len(training.validations) + len(training.step_trials))
        key = "trial" if event.trial else "validation" if event.validation else "batch"
        left[key, event.batches, len(training.step_trials)] = training.seconds_left(total)
    assert left["validation", 0, 0] is None, "no batch yet"
    checks = {2: 3, 4: 3, 6: 2, 8: 2, 10: 1, 12: 1}  # validations to come after so many batches
    for batches, due in checks.items():
        # Where a validation is due right now, it is among those to come.
        expected = 2.0 * (total - batches) + 10.0 * (due + 2)
        assert left["batch", batches, 0] == pytest.approx(expected), batches
    assert left["validation", 4, 0] == pytest.approx(2.0 * 8 + 10.0 * (2 + 2))
    assert left["trial", 12, 1] == pytest.approx(10.0) and left["trial", 12, 2] == 0.0


def test_a_training_without_validations_takes_what_its_batches_take() -> None:
    editor = make("malmen", train_steps=3, patience=0)
    training = Training(editor, draw_of(editor))
    for _ in zip(range(2), training.run(), strict=False):
        pass
    training.seconds = 8.0
    assert training.seconds_left(6) == pytest.approx(4.0 * (6 - training.batches))


RETRAINED = "retrained on the stream"


class Killed(Exception):
    """Stands for a killed process."""


@pytest.mark.parametrize(
    "case",
    ["converged", *(pytest.param(c, marks=pytest.mark.long) for c in ("averaged", RETRAINED))],
)
def test_training_resumes_at_every_event(case: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"patience": 2, "validate_every": 2, "train_steps": 3}
    straight = training_of(make(case, **settings))
    events = list(straight.run())
    expected = straight.state_dict()
    killed = training_of(make(case, **settings))
    for stop, _ in enumerate(killed.run(), start=1):
        if stop == len(events):
            break
        saved, record = stored(killed, tmp_path / f"{stop}.safetensors")
        resumed = training_of(make(case, **settings))
        resumed.load(saved, record)
        assert len(list(resumed.run())) == len(events) - stop
        found = resumed.state_dict()
        assert found.keys() == expected.keys()
        assert not [k for k in expected if not found[k].equal(expected[k])], stop
        assert resumed.curve == straight.curve
        assert without_times(resumed) == without_times(straight)


def test_a_validation_that_was_killed_is_made_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"patience": 3, "validate_every": 1, "train_steps": 2}
    straight = training_of(make("lifelong moments", **settings))
    list(straight.run())
    editor = make("lifelong moments", **settings)
    whole = stream_of(editor)

    def validate(editor: TrainableEditor, step: int) -> Validation:
        if step == 1:
            batch = editor.encode(random_edits(SIZE, seed=1))
            with editor.edits_aside():
                editor.edit(batch)
                raise Killed
        return whole(editor, step)

    killed = Training(editor, draw_of(editor), validate)
    with pytest.raises(Killed):
        list(killed.run())
    saved, record = stored(killed, tmp_path / "state.safetensors")
    resumed = training_of(make("lifelong moments", **settings))
    resumed.load(saved, record)
    list(resumed.run())
    assert equal(resumed.state_dict(), straight.state_dict())
    assert without_times(resumed) == without_times(straight)


def stored(training: Training, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is left of a training when it comes back from files."""
    save_file({k: v.contiguous() for k, v in training.state_dict().items()}, path)
    record: dict[str, Any] = json.loads(json.dumps(training.record()))
    return load_file(path), record


def without_times(training: Training) -> list[tuple[float, Validation]]:
    """All validations, those of the search over steps with their factors."""
    found = [(0.0, validation) for validation in training.validations]
    found += [(t.factor, t.validation) for t in training.step_trials if t.validation is not None]
    return [(factor, replace(validation, seconds=0.0)) for factor, validation in found]


def best_and_search(case: str, *scores: float) -> tuple[Training, dict[str, Tensor]]:
    """A training that has searched steps by scripted scores, and the state of one that has not."""
    settings: dict[str, Any] = {"patience": 2, "validate_every": 1, "train_steps": 2}
    plain = make(case, step_search=(), **settings)
    list(Training(plain, draw_of(plain), scripted(*scores[:3])).run())
    editor = make(case, step_search=(0.5, 1.0, 2.0), **settings)
    training = Training(editor, draw_of(editor), scripted(*scores))
    list(training.run())
    return training, plain.state_dict()


SEARCHED = ["converged", "averaged", "lifelong moments", "malmen", "mend"]


@pytest.mark.parametrize("case", [*SEARCHED, "retrained on the stream"])
def test_the_best_state_keeps_the_steps_that_validate_best(case: str) -> None:
    training, best = best_and_search(case, 50, 60, 55, 58, 63, 62)
    assert [trial.factor for trial in training.step_trials] == [0.5, 2.0, 4.0]
    assert training.best_trial is not None and training.best_trial.factor == 2
    assert training.best is not None and (training.best.step, training.best.score) == (1, 60)
    editor = training.editor
    plain = make(case, step_search=())
    plain.load_state_dict(best)
    for one, other in zip(editor.networks.values(), plain.networks.values(), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(one.step, 2 * other.step)
    state = editor.state_dict()
    changed = {k for k in best if not state[k].equal(best[k])}
    assert changed == {k for k in best if k.endswith(".step_parameter")} and changed


@pytest.mark.parametrize("scores", [(50, 60, 55, 60, 59), (50, 40, 45, 50, 49)])
def test_steps_stay_as_learned_where_no_factor_gains(scores: tuple[float, ...]) -> None:
    training, best = best_and_search("converged", *scores)
    assert training.best_trial is not None and training.best_trial.factor == 1
    assert equal(training.editor.state_dict(), best)


@pytest.mark.parametrize(
    ("scores", "tried"),
    [
        ((58, 63, 65, 64), [4.0, 8.0]),
        ((58, 63, 65, 66, 67), [4.0, 8.0, 16.0]),  # no more than three
        ((63, 58, 65, 64), [0.25, 0.125]),
        ((58, 63, 63), [4.0]),
    ],
)
def test_where_the_last_factor_is_best_the_search_goes_on_beyond(
    scores: tuple[float, ...], tried: list[float]
) -> None:
    training, _ = best_and_search("converged", 50, 60, 55, *scores)
    assert [trial.factor for trial in training.step_trials] == [0.5, 2.0, *tried]
    assert training.best_trial is not None and training.best_trial.score == max(scores)


@pytest.mark.parametrize("done", range(6))
def test_a_search_beyond_goes_on_where_it_was_killed(done: int, tmp_path: Path) -> None:
    scores = (50.0, 60.0, 55.0, 58.0, 63.0, 65.0, 66.0, 67.0)
    straight, _ = best_and_search("converged", *scores)
    assert len(straight.step_trials) == 5
    settings: dict[str, Any] = {"patience": 2, "validate_every": 1, "train_steps": 2}
    editor = make("converged", step_search=(0.5, 1.0, 2.0), **settings)
    killed = Training(editor, draw_of(editor), scripted(*scores))
    events = killed.run()
    while len(killed.step_trials) < done or killed.ending is None:
        next(events)
    editor = make("converged", step_search=(0.5, 1.0, 2.0), **settings)
    left = scripted(*scores[3 + len(killed.step_trials) :])
    resumed = Training(editor, draw_of(editor), left)
    resumed.load(*stored(killed, tmp_path / "state.safetensors"))
    list(resumed.run())
    assert resumed.step_trials == straight.step_trials
    assert equal(resumed.editor.state_dict(), straight.editor.state_dict())


def test_a_search_whose_next_factor_was_tried_ends() -> None:
    settings: dict[str, Any] = {"patience": 2, "validate_every": 1, "train_steps": 1}
    editor = make("converged", step_search=(1.00004,), **settings)
    training = Training(editor, draw_of(editor), scripted(50, 60, 61))
    list(training.run())
    assert [trial.factor for trial in training.step_trials] == [1.00004]


@pytest.mark.parametrize("case", SEARCHED)
def test_a_factor_is_tried_on_the_whole_validation_stream(case: str) -> None:
    settings: dict[str, Any] = {"patience": 2, "validate_every": 1, "train_steps": 1}
    plain = training_of(make(case, step_search=(), **settings))
    list(plain.run())
    training = training_of(make(case, step_search=(0.2, 5.0), **settings))
    list(training.run())
    for trial in training.step_trials:
        other = make(case, step_search=())
        other.load_state_dict(plain.editor.state_dict())
        other.scale_steps(trial.factor)
        assert trial.validation is not None
        found = stream_of(other)(other, trial.validation.step)
        assert (found.score, found.reward) == (trial.validation.score, trial.validation.reward)
        assert found.measures["eta_max"] == trial.validation.measures["eta_max"]
    assert len({found.reward for _, found in without_times(training)}) > 2


def test_a_factor_that_was_killed_while_it_was_tried_is_tried_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"patience": 2, "validate_every": 1, "train_steps": 1}
    settings["step_search"] = (0.2, 5.0)
    straight = training_of(make("lifelong moments", **settings))
    list(straight.run())
    editor = make("lifelong moments", **settings)
    whole, calls = stream_of(editor), iter(range(9))

    def validate(editor: TrainableEditor, step: int) -> Validation:
        if next(calls) == 3:  # two of training, the first factor, and here the second
            raise Killed
        return whole(editor, step)

    killed = Training(editor, draw_of(editor), validate)
    with pytest.raises(Killed):
        list(killed.run())
    saved, record = stored(killed, tmp_path / "state.safetensors")
    resumed = training_of(make("lifelong moments", **settings))
    resumed.load(saved, record)
    assert len(list(resumed.run())) == len(straight.step_trials) - 1
    assert equal(resumed.editor.state_dict(), straight.editor.state_dict())
    assert without_times(resumed) == without_times(straight)


BROKEN = r"^validation after training step \d: editing batch 1"


def test_a_factor_that_breaks_the_model_is_not_chosen(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"patience": 2, "train_steps": 1}
    plain = training_of(make("lifelong moments", step_search=(0.2,), **settings))
    list(plain.run())
    training = training_of(make("lifelong moments", step_search=(1e60, 0.2), **settings))
    list(training.run())
    broken, *others = training.step_trials
    assert (broken.factor, broken.validation) == (1e60, None)
    assert re.search(BROKEN, broken.error)
    assert without_times(training)[-1] == without_times(plain)[-1]  # nothing is left of the other
    assert training.best_trial is not None and training.best_trial.factor != 1e60
    assert equal(training.editor.state_dict(), plain.editor.state_dict())
    resumed = training_of(make("lifelong moments", step_search=(1e60, 0.2), **settings))
    resumed.load(*stored(training, tmp_path / "state.safetensors"))
    assert resumed.step_trials == [broken, *others]


def test_among_ranks_a_factor_that_breaks_the_model_ends_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editor = make("lifelong moments", patience=2, train_steps=1, step_search=(1e60,))
    training = training_of(editor)
    search = training._search_steps

    def among_two() -> Iterator[TrainingEvent]:
        monkeypatch.setattr(SingleProcess, "size", 2)
        return search()

    monkeypatch.setattr(training, "_search_steps", among_two)
    with pytest.raises(NonFiniteError, match=r"^step_search, steps times 1e\+60: validation"):
        list(training.run())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patience": 0}, "patience 0 makes no validation; set patience to 1 or more"),
        ({"step_search": (0.5, 0.0)}, r"a factor is a finite number above 0, not 0\.0"),
        ({"step_search": (-1.0,)}, "finite number above 0"),
        ({"step_search": (float("nan"),)}, "finite number above 0"),
        ({"step_search": (True,)}, "finite number above 0"),
        ({"step_search": (0.5, 2.0, 0.5)}, r"twice: \[0\.5, 2\.0, 0\.5\]"),
    ],
)
@pytest.mark.parametrize("reference", ["paper", "converged"])
def test_a_search_that_cannot_be_made_is_refused(
    settings: dict[str, Any], said: str, reference: str
) -> None:
    given = {"patience": 1, "step_search": (0.5,), "reference": reference} | settings
    with pytest.raises(SettingError, match=rf"^step_search: .*{said}"):
        editor_class("rledit").Config(modules=("m",), **given)


def test_the_recipes_search_goes_with_its_validation() -> None:
    config = editor_class("rledit").Config
    assert config(modules=("m",), reference="converged").step_search == (0.65, 0.8, 1.25)
    assert config(modules=("m",), reference="converged", patience=0).step_search == ()
    assert config(modules=("m",), reference="converged", step_search=()).step_search == ()
    assert config(modules=("m",), patience=2).step_search == ()


def test_what_cannot_be_trained_is_refused() -> None:
    editor = make("converged")
    with pytest.raises(ValueError, match=r"'rledit' trains until .* \(patience 4\): give validate"):
        Training(editor, draw_of(editor))


def test_a_validation_that_breaks_says_where() -> None:
    editor = make("moments of the trajectory", patience=2)
    stream = stream_of(editor)
    with torch.no_grad():
        for network in editor.networks.values():  # type: ignore[attr-defined]
            network.step_parameter.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"^validation after training step 4: editing batch 1"):
        stream(editor, 4)
    weights = editor.model.weights
    assert all(weights.read(name).equal(weights.original(name)) for name in editor.model.modules)


class Together:
    """Two ranks as two threads: a sum is there once both have brought their part."""

    size = 2

    def __init__(self, rank: int, barrier: Barrier, parts: list[Tensor | None]) -> None:
        self.rank = rank
        self._barrier, self._parts = barrier, parts

    def all_reduce_(self, tensor: Tensor) -> None:
        self._parts[self.rank] = tensor.clone()
        self._barrier.wait(60)
        total = sum(part for part in self._parts if part is not None)
        self._barrier.wait(60)
        tensor.copy_(torch.as_tensor(total))


def test_every_rank_finds_the_same_and_what_one_process_finds() -> None:
    """All have to end at the same step, so not a bit may differ between them."""
    settings: dict[str, Any] = {"patience": 2, "validate_every": 1, "train_steps": 2}
    settings["step_search"] = (0.5, 2.0)
    alone = training_of(make("batch by batch", **settings))
    list(alone.run())
    barrier = Barrier(2)
    parts: list[Tensor | None] = [None, None]
    # Made one after another: threads share a random state, processes do not.
    editors = [
        make("batch by batch", ranks=Together(rank, barrier, parts), **settings) for rank in (0, 1)
    ]

    def work(editor: TrainableEditor) -> Training:
        training = training_of(editor)
        list(training.run())
        return training

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(work, editors)
    assert without_times(one) == without_times(other)
    assert equal(one.state_dict(), other.state_dict())
    for found, expected in zip(one.validations, alone.validations, strict=True):
        assert found.score == pytest.approx(expected.score, abs=1e-9)
        assert found.reward == pytest.approx(expected.reward, rel=1e-4)
