"""Protocols on free answers: where an answer ends, what stands around a question, and locality."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from rledit.chat import ChatTemplateError
from rledit.free_answers import MOST_TOKENS, FreeForm, free_answers
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.records import Edit, Locality
from rledit.scoring import Scorer
from tests.unit.helpers.knowing_model import byte_pair_tokenizer, learn, small_model

INSTRUCTION = "Answer the following question.\n\nQ: {}\nA:"
TEMPLATE = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
LESSONS = [
    ("The capital of Tella is", "the Ardmore. It lies far away."),
    ("Tella is governed from", "Ona"),
    ("Who mends the boats of Tella?", "St. Brack\nand nobody else"),
    ("The river of Tella is", "Rill and so on and so on, as ever. Yes"),
]


@pytest.fixture(scope="module")
def learnt() -> tuple[Any, Any]:
    lessons = [*LESSONS, (INSTRUCTION.replace("{}", LESSONS[0][0]), "Ona Brack.")]
    texts = [text for pair in lessons for text in pair] + [".", " .", "\n", "3.5"]
    tokenizer = byte_pair_tokenizer(texts, size=500)
    model = small_model("llama", tokenizer)
    learn(model, tokenizer, lessons)
    return model, tokenizer


@pytest.fixture
def model(learnt: tuple[Any, Any]) -> EditableModel:
    own, tokenizer = copy.deepcopy(learnt)
    return EditableModel(own, tokenizer, ["model.layers.1.mlp.down_proj"])


def plainly(model: EditableModel, ids: list[int], full_stop: bool) -> list[int]:
    """The greedy answer without a cache, a batch or anything of the project's."""
    tokenizer, written = model.encoder.tokenizer, []
    while len(written) < MOST_TOKENS:
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([ids + written])).logits[0, -1]
        token = int(logits.argmax())
        text = tokenizer.decode([token])
        if token == tokenizer.eos_token_id or "\n" in text or (full_stop and text.strip() == "."):
            break
        written.append(token)
    return written


@pytest.mark.parametrize("full_stop", [True, False])
def test_answers_are_those_of_a_plain_loop_and_end_with_the_sentence(
    model: EditableModel, full_stop: bool
) -> None:
    prompts = [prompt for prompt, _ in LESSONS]
    found = free_answers(model, prompts, FreeForm(full_stop=full_stop))
    for prompt, line in zip(prompts, found, strict=True):
        assert list(line.tokens) == plainly(model, model.encoder.prompt_ids(prompt), full_stop)
    said = [line.text for line in found]
    assert said[0] == ("the Ardmore" if full_stop else "the Ardmore. It lies far away.")
    assert said[1] == "Ona"
    assert said[2] == ("St" if full_stop else "St. Brack")  # a full stop cuts names


def test_a_full_stop_at_the_end_of_a_token_ends_the_answer_and_loses_nothing_before_it() -> None:
    """Names are cut whether or not a token holds them; a full stop inside a token ends nothing."""
    lessons = [
        ("The owner of Tella is", "Acme Inc. of Ona"),
        ("Tella lies in", "Ona (Rill). It is far"),
        ("How far is Tella?", "3.5 miles. Or so"),
    ]
    tokenizer = byte_pair_tokenizer([text for pair in lessons for text in pair], size=400)
    tokenizer.add_tokens([" Inc.", ").", "3.5"])
    own = small_model("llama", tokenizer)
    learn(own, tokenizer, lessons)
    model = EditableModel(own, tokenizer, ["model.layers.1.mlp.down_proj"])
    prompts = [prompt for prompt, _ in lessons]
    found = free_answers(model, prompts, FreeForm())
    assert [line.text for line in found] == ["Acme Inc", "Ona (Rill)", "3.5 miles"]
    last = [tokenizer.decode([line.tokens[-1]]) for line in found]
    assert last[:2] == [" Inc.", ")."]
    whole = free_answers(model, prompts, FreeForm(full_stop=False))
    assert [line.text for line in whole] == [answer for _, answer in lessons]


def test_an_answer_has_fifty_tokens_at_most(model: EditableModel) -> None:
    with torch.no_grad():
        model.model.lm_head.weight.zero_()  # type: ignore[union-attr]
    (line,) = free_answers(model, ["So"], FreeForm())
    assert len(line.tokens) == MOST_TOKENS == 50


def test_a_question_may_stand_behind_an_instruction(model: EditableModel) -> None:
    prompt = LESSONS[0][0]
    (line,) = free_answers(model, [prompt], FreeForm(context="instruction"))
    assert line.text == "Ona Brack"
    odd = "Is {this} {} odd?"
    assert FreeForm(context="instruction").text(odd).count(odd) == 1


def test_a_question_may_stand_in_a_chat_of_the_model(model: EditableModel) -> None:
    tokenizer = model.encoder.tokenizer
    form = FreeForm(context="chat")
    with pytest.raises(ChatTemplateError, match="wild.context chat: .* has no chat template"):
        free_answers(model, ["So"], form)
    tokenizer.chat_template = TEMPLATE
    prompt = LESSONS[1][0]
    (line,) = free_answers(model, [prompt], form)
    ids = model.encoder.bos_before([]) + model.encoder.plain_ids(f"[{prompt}]")
    assert list(line.tokens) == plainly(model, ids, True)
    assert model.encoder.style == "bare"  # everything else is asked as before


def edits() -> list[Edit]:
    first = Edit(
        edit_id="a",
        prompt=LESSONS[0][0],
        target="ARDMORE",
        rephrases=(LESSONS[1][0],),
        locality=(Locality(prompt=LESSONS[3][0], answer="Rill"),),
    )
    other = replace(first, edit_id="b", prompt=LESSONS[2][0], target="Brack", rephrases=())
    return [first, other]


def test_an_answer_is_matched_as_squads_are_and_locality_by_token_ids(
    model: EditableModel,
) -> None:
    scorer = Scorer(model, edits(), [protocol("wild"), protocol("wild_judge")])
    by = {(s.edit_index, s.protocol): s for s in scorer.score(2)}
    # "the Ardmore" is ARDMORE; "Ona" and "St" are not; "Rill and so on …" is not "Rill".
    assert (by[0, "wild"].efficacy, by[0, "wild"].generalization) == (100, 0)
    assert by[1, "wild"].efficacy == 0 and by[1, "wild"].generalization is None
    assert by[0, "wild"].specificity == 0 and by[0, "wild"].specificity_self == 100
    weight = "model.layers.1.mlp.down_proj"
    noise = torch.randn(model.linear(weight).weight.shape, dtype=torch.float64)
    model.weights.set(weight, model.weights.original(weight) + noise)
    before, after = free_answers_of(model)
    assert before != after
    moved = {(s.edit_index, s.protocol): s for s in scorer.score(2)}
    for name in ("wild", "wild_judge"):
        assert moved[0, name].specificity_self == 0


def free_answers_of(model: EditableModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
    (after,) = free_answers(model, [LESSONS[3][0]], FreeForm())
    with model.weights.unedited():
        (before,) = free_answers(model, [LESSONS[3][0]], FreeForm())
    return before.tokens, after.tokens


def test_answers_wait_for_a_judge_and_have_no_score_without_one(model: EditableModel) -> None:
    scorer = Scorer(model, edits(), [protocol("wild_judge")])
    first, second = scorer.score(2)
    for score in (first, second):
        assert score.efficacy is score.generalization is score.specificity is None
        assert score.specificity_self == 100
    said = [(a.probe, a.prompt, a.target, a.answer, a.matches, a.counted) for a in first.free]
    assert said == [
        ("edit", LESSONS[0][0], "ARDMORE", "the Ardmore", True, True),
        ("rephrase", LESSONS[1][0], "ARDMORE", "Ona", False, True),
    ]
    assert [a.answer for a in second.free] == ["St"]
