"""InstructEdit: what carries its instruction, what does not, and that the rest of it is MEND."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from rledit.calibration import calibrate
from rledit.decoding import Line
from rledit.editors.conventions import Recipe
from rledit.editors.instructedit import InstructEdit, InstructEditConfig, _one_by_one
from rledit.editors.mend import MEND, MENDConfig
from rledit.instructions import TASKS, TRAINED_ON, Instruction, instruction_of, task_of
from rledit.measurements.portability import consequences_of
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.records import Consequence, Edit
from rledit.scoring import Scorer, questions
from rledit.step_size import SettingError
from rledit.superseded import Facts, Standing
from rledit.tokenization import EditBatch, Sample, TokenizationError
from rledit.training import Training
from rledit.validation import ValidationStream
from rledit.world.words import word_tokenizer
from rledit.written_answers import Answers
from tests.unit.helpers.text_edits import WORDS, random_edits
from tests.unit.helpers.tiny_models import double_arithmetic

SMALL: dict[str, Any] = {"rank": 4, "n_blocks": 1, "meta_lr": 1e-3, "initial_step": 1e-2}
TOLD = sorted(
    {
        word
        for task in TASKS.values()
        for n in range(1, 11)
        for word in task.instruction(n).around("").replace("\n", " ").split(" ")
    }
)
TOKENIZER = word_tokenizer((*WORDS, *TOLD), add_bos=True)
EDITS = random_edits(6)


def opened(instruction: Instruction | None, positions: int = 128) -> EditableModel:
    """A tiny model that knows the words of every instruction."""
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=len(TOKENIZER), max_position_embeddings=positions,
        initializer_range=0.25,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    return EditableModel(model, TOKENIZER, ("down:all",), instruction=instruction)


def made(positions: int = 128, **settings: Any) -> InstructEdit:
    config = InstructEditConfig(modules=("down:all",), **(SMALL | settings))
    model = opened(InstructEdit.instruction_of(config), positions)
    return InstructEdit(model, replace(config, modules=model.modules))


def text(sample: Sample) -> str:
    return str(TOKENIZER.decode(sample.input_ids.tolist(), skip_special_tokens=True))


def words(wrapped: str) -> str:
    """A text as the tokenizer gives it back."""
    ids = TOKENIZER(wrapped, add_special_tokens=False)["input_ids"]
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


def matrices(model: EditableModel) -> dict[str, Tensor]:
    return {name: model.weights.read(name).clone() for name in model.modules}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_every_task_has_ten_different_descriptions() -> None:
    for task in TASKS.values():
        assert len(set(task.descriptions)) == 10 == TRAINED_ON + 1
        assert len(task.trained_on) == TRAINED_ON
        assert task.instruction(10) not in task.trained_on
    every = [d for task in TASKS.values() for d in task.descriptions]
    assert len(set(every)) == len(every)


def test_a_schema_has_its_task() -> None:
    assert [task_of(s) for s in ("zsre", "zsre_mend", "counterfact", "fever", "wikibigedit")] == [
        "zsre", "zsre", "counterfact", "fever", "recent",
    ]  # fmt: skip
    assert task_of(None) == task_of("mquake") == "facts"


def test_an_empty_template_is_mend_bit_by_bit() -> None:
    """Editing, and training where the data's rephrase is the prompt itself."""
    edits = [replace(edit, rephrases=(edit.prompt,)) for edit in EDITS]
    alike: dict[str, Any] = {"max_grad_norm": 1.0, "scalar_lr_factor": 1.0}
    mend_model = opened(None)
    mend = MEND(mend_model, MENDConfig(modules=mend_model.modules, **SMALL, **alike))
    instruct = made(
        instruction=0,
        drop_zero_rows=False,
        edit_coef=1.0,
        accumulation=0,
        update_moments_while_editing=True,
        **alike,
    )
    for editor in (mend, instruct):
        batches = [editor.encode_training(edits[i : i + 3], str(i)) for i in (0, 3)]
        editor.train_step(batches)
    assert same(mend.state_dict(), instruct.state_dict())
    for start in (0, 3):
        for editor in (mend, instruct):
            editor.edit(editor.encode(edits[start : start + 3]))
    assert same(matrices(mend.model), matrices(instruct.model))
    told = made(
        drop_zero_rows=False, accumulation=0, update_moments_while_editing=True, **alike
    )  # fmt: skip
    told.edit(told.encode(edits[:3]))
    assert not same(matrices(mend.model), matrices(told.model))


@pytest.mark.parametrize("number", [1, 9, 10])
def test_prompts_are_scored_as_they_are_edited_and_locality_as_it_is(number: int) -> None:
    editor = made(task="zsre", instruction=number)
    told = TASKS["zsre"].instruction(number)
    batch = editor.encode(EDITS)
    for i, edit in enumerate(EDITS):
        asked = questions(editor.model.encoder, edit, [protocol("choice")])
        assert torch.equal(asked.edit.sample.input_ids, batch.edit.samples[i].input_ids)
        assert torch.equal(asked.edit.sample.labels, batch.edit.samples[i].labels)
        assert text(asked.edit.sample).startswith(words(told.around(edit.prompt)))
        assert asked.edit.asked == told.around(edit.prompt) and asked.edit.prompt == edit.prompt
        (rephrase,), (unrelated,) = asked.equivalent, asked.unrelated
        assert text(rephrase.sample).startswith(words(told.around(edit.rephrases[0])))
        assert text(batch.equivalent.samples[i]).startswith(words(told.around(edit.rephrases[0])))
        for sample in (unrelated.sample, unrelated.rival, batch.unrelated.samples[i]):
            assert sample is not None and "Description" not in text(sample)
            assert text(sample).startswith(words(edit.locality[0].prompt))


def test_consequences_and_written_answers_carry_it_and_locality_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editor = made()
    told = TASKS["facts"].instruction(1)
    item = Consequence(kind="multi_hop", prompt="w01 w02", answers=("w03",))
    edits = [replace(EDITS[0], consequences=(item,))]
    ((_, _, sample),) = consequences_of(editor.model, edits)
    assert text(sample) == words(told.around("w01 w02"))
    asked: list[str] = []

    def noted(_: Any, prompts: Sequence[str], limits: Sequence[int]) -> list[Line]:
        asked.extend(prompts)
        return [Line(tokens=(), text="") for _ in limits]

    monkeypatch.setattr("rledit.written_answers._write", noted)
    answers = Answers(editor.model, edits, [0]).ask(0)
    edit = edits[0]
    assert asked == [
        told.around(edit.prompt), told.around(edit.rephrases[0]), edit.locality[0].prompt,
        told.around("w01 w02"),
    ]  # fmt: skip
    assert [a.prompt for a in answers] == [
        edit.prompt, edit.rephrases[0], edit.locality[0].prompt, "w01 w02",
    ]  # fmt: skip


def test_what_supersedes_what_is_told_by_prompts_without_instructions() -> None:
    first = EDITS[0]
    later = replace(EDITS[1], prompt=first.locality[0].prompt)
    assert Standing(Facts([first, later]), 2).locality(first.locality[0].prompt)
    editor = made()
    scorer = Scorer(editor.model, [first, later], [protocol("token_accuracy")])
    assert scorer.score(2)[0].n_locality_superseded == 1


def test_training_draws_from_nine_descriptions_and_never_from_the_tenth() -> None:
    editor = made(task="counterfact", instruction=10)
    task = TASKS["counterfact"]
    seen: set[str] = set()
    for n in range(30):
        batch = editor.encode_training(EDITS, f"{n}/0")
        assert batch.equivalent is batch.edit
        for edit, sample in zip(EDITS, batch.edit.samples, strict=True):
            (found,) = [
                d.description
                for d in map(task.instruction, range(1, 11))
                if text(sample).startswith(words(d.around(edit.prompt)))
            ]
            seen.add(found)
        assert not any("Description" in text(s) for s in batch.unrelated.samples)
    assert seen == set(task.descriptions[:TRAINED_ON])
    again = editor.encode_training(EDITS, "3/0")
    expected = editor.encode_training(EDITS, "3/0")
    assert all(
        torch.equal(a.input_ids, b.input_ids)
        for a, b in zip(again.edit.samples, expected.edit.samples, strict=True)
    )


def test_a_long_instruction_cuts_no_target_off() -> None:
    """The release cuts editing prompts at 40 tokens; ours are whole, or refused with their row."""
    long = replace(EDITS[0], prompt=" ".join(["w01"] * 40), target="w02 w03 w04")
    editor = made()
    (sample,) = editor.encode([long]).edit.samples
    assert len(sample) > 55
    assert TOKENIZER.decode(sample.answer_ids.tolist()) == "w02 w03 w04"
    with pytest.raises(TokenizationError, match=r"random.json:0: prompt \(\d+ tokens\) and answer"):
        made(positions=48).encode([long])


def test_a_model_that_asks_otherwise_is_refused() -> None:
    editor = made()
    bare = InstructEdit(opened(None), editor.config)
    with pytest.raises(ValueError, match="the model was opened with None: pass instruction="):
        bare.encode(EDITS)


def test_examples_are_edited_one_by_one_with_a_step_for_every_two() -> None:
    editor = made(accumulation=2)
    sizes: list[int] = []
    steps: list[int] = []
    propose, step = editor.propose, editor.optimiser.step

    def noted(batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch.edit))
        unedited = all(
            torch.equal(editor.model.weights.read(n), editor.model.weights.original(n))
            for n in editor.model.modules
        )
        assert unedited
        return propose(batch, *rest)

    def counted(*args: Any) -> Any:
        steps.append(len(sizes))
        return step(*args)

    editor.propose = noted  # type: ignore[method-assign]
    editor.optimiser.step = counted  # type: ignore[method-assign]
    editor.train_step(
        [editor.encode_training(EDITS[:5], "0"), editor.encode_training(EDITS[:2], "1")]
    )
    assert sizes == [1] * 7
    assert steps == [2, 4, 5, 7]


def test_the_rate_falls_over_all_optimiser_steps_of_the_training() -> None:
    editor = made(accumulation=2, schedule="cosine", train_steps=2)
    rates: list[float] = []
    for i in range(2):
        batches = [editor.encode_training(EDITS[:5], f"{i}a"), editor.encode_training(EDITS, "b")]
        for _ in editor.train_batches(batches):
            rates.append(editor.training_measures["learning_rate"])
    made_in_all = 2 * (3 + -(-len(EDITS) // 2))
    assert editor._total_steps == made_in_all
    assert rates[1] > 0.4 * editor.config.meta_lr  # half of the training is left
    assert len(rates) == 4 and rates[0] > rates[1] > rates[2] > rates[3]


def _plainly(editor: InstructEdit, example: EditBatch) -> float:
    """0.1 NLL(edit prompt) + KL(unrelated prompt) behind an edit, by whole passes of the model."""
    (asked,), (unrelated,) = example.edit.samples, example.unrelated.samples

    def chances(sample: Sample) -> Tensor:
        logits = editor.model.model(input_ids=sample.input_ids[None]).logits[0]
        return logits[sample.answer_positions].log_softmax(-1)

    with torch.no_grad():
        before = chances(unrelated)
        proposal = editor.propose(example)
        editor.merge(proposal)
        nll = -chances(asked).gather(1, asked.answer_ids[:, None]).mean()
        divergence = (before.exp() * (before - chances(unrelated))).sum(1).mean()
        editor.model.weights.restore()
    return float(0.1 * nll + divergence)


def test_a_step_takes_the_gradient_of_the_published_loss_of_two_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against differences of the loss along a direction; the third example is alone in its step,
    and weighs as one of two."""
    double_arithmetic(monkeypatch)
    editor = made(meta_lr=1e-6)
    assert (editor.config.accumulation, editor.config.instruction) == (2, 1)
    rates = [group["lr"] for group in editor.optimiser.param_groups]
    assert rates == pytest.approx([1e-6, 1e-4])  # of the network, and of its steps
    editor.train_step([editor.encode_training(random_edits(3, seed=9), "0")])  # begins the moments
    parameters = editor._parameters()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:  # away from the start, where activations are all at a kink
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    batch = editor.encode_training(EDITS[:3], "1")
    begun = {k: v.clone() for k, v in editor.state_dict().items()}
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def losses(distance: float) -> list[float]:
        editor.load_state_dict(begun)
        with torch.no_grad():
            for parameter, direction in zip(parameters, along, strict=True):
                parameter.add_(direction, alpha=distance)
        return [_plainly(editor, example) for example in _one_by_one(batch)]

    small = 1e-6
    slopes = [(b - a) / (2 * small) for a, b in zip(losses(-small), losses(small), strict=True)]
    editor.load_state_dict(begun)
    found: list[float] = []

    def noted(*_: Any) -> None:
        found.append(
            sum(
                float((p.grad * d).sum())
                for p, d in zip(parameters, along, strict=True)
                if p.grad is not None
            )
        )

    editor.optimiser.step = noted  # type: ignore[method-assign]
    editor.train_step([batch])
    assert found == pytest.approx([(slopes[0] + slopes[1]) / 2, slopes[2] / 2], rel=1e-5)


def test_no_rephrase_is_learned_from() -> None:
    editor, other = made(), made()
    without = [replace(edit, rephrases=()) for edit in EDITS]
    a = editor.train_step([editor.encode_training(EDITS, "0")])
    b = other.train_step([other.encode_training(without, "0")])
    assert a == b and a["divergence"] > 0
    assert InstructEdit.trains_on_of(editor.config) == {"locality prompt"}
    recipes = (InstructEditConfig(modules=("down:0",), reference=r) for r in get_args(Recipe))
    assert not any(config.augment for config in recipes)  # which puts rephrases in prompts' place


def test_rows_of_zeros_are_left_out() -> None:
    """Of the last layer's MLP, all positions but those that predict the answer."""
    editor, kept = made(), made(drop_zero_rows=False)
    last = editor.model.modules[-1]
    batch = editor.encode(EDITS[:2])
    answers = sum(len(s.answer_ids) for s in batch.edit.samples)
    right = editor.propose(batch).shifts[last].right
    assert int((right != 0).any(-1).sum()) == answers < len(right)
    right = kept.propose(kept.encode(EDITS[:2])).shifts[last].right
    assert int((right != 0).any(-1).sum()) == len(right)
    rows = sum(m.count.item() for m in editor.moments.values())
    assert rows == len(right) + answers
    assert sum(m.count.item() for m in kept.moments.values()) == 2 * len(right)


@pytest.mark.parametrize("edits", [1, 6])
def test_by_the_normal_equation_rows_of_zeros_have_no_part(edits: int) -> None:
    """In either of its forms: with fewer rows than features, and with more."""
    editor = made(rule="normal_equation")
    batch = editor.encode(EDITS[:edits])
    proposal = editor.propose(batch)
    last = editor.model.modules[-1]
    keys, values = proposal.captured.keys[last], proposal.captured.values[last]
    assert (len(keys) > keys.shape[1]) is (edits == 6)
    counted = (values != 0).any(-1)
    assert 0 < int(counted.sum()) < len(keys)
    shape = editor.model.shape(last)
    z = editor.normalise(shape, torch.cat([keys, values], -1))[counted]
    both = editor.solve(shape, keys[counted].expand(2, -1, -1), z.expand(2, -1, -1))
    alone = both.right[1] if both.left is None else both.left[1].T @ both.right[1]
    torch.testing.assert_close(proposal.shifts[last].dense(), alone)
    assert editor.edit(batch)["shift_norm"] > 0


def test_moments_move_in_training_only() -> None:
    editor = made()
    editor.train_step([editor.encode_training(EDITS, "0")])
    before = {k: v.clone() for k, v in editor.state_dict().items()}
    editor.edit(editor.encode(EDITS))
    assert same(before, editor.state_dict())


def test_training_is_validated_with_the_instruction_of_the_stream() -> None:
    editor = made(patience=2, train_steps=2, trajectory_batches=2, validate_every=1)

    def draw(step: int) -> list[list[Any]]:
        return [[editor.encode_training(EDITS[i : i + 3], f"{step}/{i}") for i in (0, 3)]]

    validate = ValidationStream(editor, random_edits(4, seed=5), 2)
    training = Training(editor, draw, validate)
    assert len(list(training.run())) == 7 and training.best is not None


def test_bad_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="did you mean 'zsre'"):
        InstructEditConfig(modules=("down:0",), task="zsrre")
    with pytest.raises(SettingError, match="descriptions 1 to 10, or 0 for none, not 11"):
        InstructEditConfig(modules=("down:0",), instruction=11)
    assert instruction_of("zsre", 0) is None


def test_the_record_says_what_stands_around_a_prompt() -> None:
    editor = made()
    said = editor.model.encoder.prompting["instruction"]
    assert said == TASKS["facts"].instruction(1).around("{}")
    assert said.splitlines()[0] == "Task: fact completion" and said.endswith("\nInput: {}")
    assert "instruction" not in opened(None).encoder.prompting
    assert isinstance(EDITS[0], Edit)


def test_the_held_out_description_chooses_neither_a_trained_state_nor_a_step() -> None:
    """Validation and calibration under it are those under the first one, which is trained on."""
    held_out, taught = (made(instruction=n, patience=2) for n in (10, 1))
    stream = random_edits(4, seed=5)
    found = [
        ValidationStream(editor, stream, 2)(editor, 0).metrics for editor in (held_out, taught)
    ]
    assert found[0] == found[1]
    other = made(instruction=2, patience=2)
    assert ValidationStream(other, stream, 2)(other, 0).metrics != found[0]
    steps = [
        calibrate(e.model, InstructEdit, replace(e.config, initial_step="auto"), stream).record()
        for e in (held_out, taught)
    ]
    assert steps[0] == steps[1]
    # The stream itself is edited and asked under it.
    tenth = words(TASKS["facts"].instruction(10).around(EDITS[0].prompt))
    assert text(held_out.encode(EDITS).edit.samples[0]).startswith(tenth)
    asked = questions(held_out.model.encoder, EDITS[0], [protocol("choice")])
    assert text(asked.edit.sample).startswith(tenth)
