"""Answers in words: what greedy decoding alone would write, whoever else is asked beside."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.decoding import Line, line_of, whole_characters
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.records import Consequence, Edit, Locality
from rledit.scoring import Scorer
from rledit.written_answers import MORE_TOKENS, Answer, Answers, sampled
from tests.unit.helpers.knowing_model import byte_pair_tokenizer, learn, small_model

CITIES = ("Lima", "Zürich", "São Paulo", "New York", "東京", "Port-au-Prince")
TARGETS = ("Oslo", "Bern", "Rio de Janeiro", "Los Angeles", "大阪", 'the "Big" One')


def edit(i: int) -> Edit:
    """An edit with every kind of prompt; lengths differ from one to another."""
    city, target = CITIES[i], TARGETS[i]
    return Edit(
        edit_id=f"e{i}",
        prompt=f"{city} lies beside {'the ' * i}town of",
        target=target,
        rephrases=(f"Which town lies beside {city}?", f"Next to {city} is"),
        locality=(Locality(prompt=f"The river of {city} is", answer="the Rhine"),),
        consequences=(
            Consequence(kind="two_hop", prompt=f"Beside {city} they speak", answers=("no", "nope")),
            Consequence(kind="two_hop", prompt=f"They pay beside {city} in", answers=("gold",)),
            Consequence(kind="alias", prompt=f"{city}'s neighbour is", answers=(target,)),
        ),
    )


EDITS = [edit(i) for i in range(len(CITIES))]


def lessons() -> list[tuple[str, str]]:
    """Half of what is asked is known; a few answers are long, one begins with blank lines."""
    told = [(e.prompt, e.target if i % 2 else f"{e.target} and nothing more") for i, e in
            enumerate(EDITS)]  # fmt: skip
    told += [(e.rephrases[0], e.target) for e in EDITS[:3]]
    told += [(e.locality[0].prompt, "the Rhine" if i % 2 else "a brook") for i, e in
             enumerate(EDITS)]  # fmt: skip
    told += [(EDITS[0].consequences[0].prompt, "nope"), (EDITS[1].consequences[0].prompt, "yes")]
    return told


@pytest.fixture(scope="module")
def learnt() -> tuple[Any, Any]:
    texts = [text for pair in lessons() for text in pair] + ["\n\n", "a line\nbreak"]
    tokenizer = byte_pair_tokenizer(texts, size=600)
    model = small_model("llama", tokenizer)
    learn(model, tokenizer, lessons())
    return model, tokenizer


@pytest.fixture
def model(learnt: tuple[Any, Any]) -> EditableModel:
    return EditableModel(*learnt, ["model.layers.1.mlp.down_proj"])


def plainly(model: EditableModel, prompt: str, most: int) -> list[int]:
    """The greedy continuation without a cache, a batch or anything of the project's."""
    ids = model.encoder.prompt_ids(prompt)
    tokenizer, written = model.encoder.tokenizer, []
    while len(written) < most:
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([ids + written])).logits[0, -1]
        token = int(logits.argmax())
        text = tokenizer.decode([*written, token], skip_special_tokens=True)
        if token == tokenizer.eos_token_id or "\n" in text.lstrip():
            break
        written.append(token)
    return written


def plain_logprob(model: EditableModel, prompt: str, target: str) -> float:
    head, tail = model.encoder.prompt_ids(prompt), model.encoder.answer_ids(prompt, target)
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([head + tail])).logits[0].double()
    rows = logits[len(head) - 1 : -1].log_softmax(-1)
    return float(rows.gather(1, torch.tensor(tail)[:, None]).sum())


def test_answers_are_those_of_decoding_one_prompt_after_another(model: EditableModel) -> None:
    answers = Answers(model, EDITS, range(len(EDITS)), "all").ask(0)
    assert [a.probe for a in answers[:7]] == [
        "edit", "rephrase", "rephrase", "locality", "portability", "portability", "portability",
    ]  # fmt: skip
    for answer in answers:
        most = len(model.encoder.answer_ids(answer.prompt, answer.target)) + MORE_TOKENS
        tokens = plainly(model, answer.prompt, most)
        assert list(answer.tokens) == tokens
        text = model.encoder.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert answer.answer == text
        assert answer.target_logprob == pytest.approx(
            plain_logprob(model, answer.prompt, answer.target), abs=1e-4
        )
    assert {a.is_target for a in answers} == {a.has_target for a in answers} == {True, False}
    # "Oslo and nothing more" has the target in it, and is not the target.
    assert (answers[0].is_target, answers[0].has_target) == (False, True)
    assert len({len(a.tokens) for a in answers}) > 3


def test_an_answer_does_not_depend_on_who_else_is_asked(model: EditableModel) -> None:
    together = Answers(model, EDITS, range(len(EDITS)), "all").ask(0)
    again = Answers(model, EDITS, range(len(EDITS)), "all").ask(0)
    assert together == again
    alone = [a for i in range(len(EDITS)) for a in Answers(model, EDITS, [i], "all").ask(0)]

    def rounded(answers: list[Answer]) -> list[Answer]:
        return [replace(a, target_logprob=round(a.target_logprob or 0, 3)) for a in answers]

    assert rounded(alone) == rounded(together)
    small = Answers(model, EDITS, [0, 1], "all")
    model.execution = replace(model.execution, token_budget=1)  # a prompt a pass
    assert rounded(small.ask(0)) == rounded(together)[: len(small.ask(0))]


def test_which_prompts_are_asked_follows_the_probes(model: EditableModel) -> None:
    def prompts(probes: Any, seed: int = 0) -> list[str]:
        return [a.prompt for a in Answers(model, EDITS, [2], probes, seed).ask(0)]

    own = EDITS[2]
    two_hop, _, alias = own.consequences
    first = [own.prompt, own.rephrases[0], own.locality[0].prompt, two_hop.prompt, alias.prompt]
    assert prompts("first") == first
    drawn = {prompts("drawn", seed)[1] for seed in range(8)}
    assert drawn == set(own.rephrases)
    assert len(prompts("all")) == 7


def test_any_wording_of_a_consequence_is_its_target(model: EditableModel) -> None:
    answers = Answers(model, EDITS, [0, 1]).ask(0)
    said = {a.answer: a.is_target for a in answers if a.probe == "portability"}
    assert said["nope"] and not said["yes"]


def test_edits_that_are_not_made_yet_are_not_asked(model: EditableModel) -> None:
    answers = Answers(model, EDITS, [0, 2, 5])
    assert [a.edit_index for a in answers.ask(3) if a.probe == "edit"] == [0, 2]
    assert [a.edit_index for a in answers.ask(0) if a.probe == "edit"] == [0, 2, 5]


def test_what_a_later_edit_says_otherwise_is_marked(model: EditableModel) -> None:
    first = EDITS[1]
    later = replace(first, edit_id="later", target="Lima", locality=())
    taken = replace(EDITS[2], prompt=first.locality[0].prompt, rephrases=(), consequences=())
    stream = [first, EDITS[0], later, taken]
    marked = {
        n: {a.probe: a.superseded for a in Answers(model, stream, [0]).ask(n)} for n in (1, 3, 0)
    }
    assert not any(marked[1].values())
    assert marked[3]["edit"] and marked[3]["rephrase"] and not marked[3]["locality"]
    assert marked[0]["edit"] and marked[0]["locality"]  # as after the last edit


def test_blank_lines_before_an_answer_are_passed_over(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = model.encoder.tokenizer
    blank = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    script = [*blank, *tokenizer(" Oslo\nand more", add_special_tokens=False)["input_ids"]]
    forward, start = model.model.forward, len(model.encoder.prompt_ids(EDITS[0].prompt))

    def scripted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if kwargs.get("use_cache"):
            past = output.past_key_values.get_seq_length() - start
            output.logits = torch.full_like(output.logits, -1.0)
            output.logits[..., script[min(past, len(script) - 1)]] = 1.0
        return output

    monkeypatch.setattr(model.model, "forward", scripted)
    bare = replace(EDITS[0], rephrases=(), locality=(), consequences=())
    (answer,) = Answers(model, [bare], [0]).ask(0)
    assert answer.answer == "Oslo" and answer.is_target
    assert list(answer.tokens[: len(blank)]) == blank


def test_what_is_not_a_number_is_no_answer_and_no_probability(model: EditableModel) -> None:
    tokenizer = model.encoder.tokenizer
    whole = Answers(model, EDITS, range(len(EDITS))).ask(0)
    broken = tokenizer("Zürich", add_special_tokens=False)["input_ids"][-1]
    table: Tensor = model.model.get_input_embeddings().weight  # type: ignore[operator]
    before = table[broken].clone()
    table.data[broken] = math.nan
    try:
        found = Answers(model, EDITS, range(len(EDITS))).ask(0)
    finally:
        table.data[broken] = before
    hit = [broken in model.encoder.prompt_ids(a.prompt) for a in whole]
    assert any(hit) and not all(hit)
    for answer, was, own in zip(found, whole, hit, strict=True):
        if own:
            assert (answer.answer, answer.target_logprob, answer.tokens) == (None, None, ())
            assert not (answer.is_target or answer.has_target)
        else:
            assert answer.answer == was.answer


def test_an_impossible_target_has_no_log_probability() -> None:
    texts = [text for pair in lessons() for text in pair]
    tokenizer = byte_pair_tokenizer(texts, size=600)
    masked = small_model("gptj", tokenizer)
    oslo, bern = ({*tokenizer(f" {t}", add_special_tokens=False)["input_ids"]} for t in TARGETS[:2])
    masked.lm_head.bias.data[min(oslo - bern)] = -math.inf
    model = EditableModel(masked, tokenizer, ["transformer.h.1.mlp.fc_out"])
    answers = [a for a in Answers(model, EDITS, [0, 1]).ask(0) if a.probe == "edit"]
    assert answers[0].target_logprob is None and answers[0].answer is not None
    assert answers[1].target_logprob is not None


def test_asking_changes_no_score(model: EditableModel) -> None:
    def scorer() -> Scorer:
        return Scorer(model, EDITS, [protocol("token_accuracy"), protocol("generation")], "all")

    model.prefix_cache.clear()
    plain = scorer().score(len(EDITS))
    model.prefix_cache.clear()
    asked = scorer()
    random, counts = torch.get_rng_state(), (model.prefix_cache.hits, model.prefix_cache.misses)
    keys = list(model.prefix_cache._cache)
    Answers(model, EDITS, range(len(EDITS)), "all").ask(0)
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.prefix_cache.hits, model.prefix_cache.misses) == counts
    assert list(model.prefix_cache._cache) == keys
    assert asked.score(len(EDITS)) == plain


@pytest.mark.parametrize(("n", "wanted"), [(200, 10), (7, 3), (5, 10), (8000, 10), (4, 0), (1, 1)])
def test_a_sample_is_spread_over_the_stream(n: int, wanted: int) -> None:
    chosen = sampled(n, wanted, 0)
    count = min(n, wanted)
    assert len(set(chosen)) == count and chosen == sorted(chosen)
    for i, place in enumerate(chosen):
        assert i * n // count <= place < (i + 1) * n // count
    assert sampled(n, wanted, 0) == chosen
    if n > 2 * wanted > 2:
        assert sampled(n, wanted, 1) != chosen


def test_a_line_that_ends_inside_a_character_ends_before_it() -> None:
    tokenizer = byte_pair_tokenizer(["the answer"], size=300)
    model: Any = SimpleNamespace(encoder=SimpleNamespace(tokenizer=tokenizer))
    ids = tokenizer(" Kyōto 京", add_special_tokens=False).input_ids
    whole = Line(tokens=tuple(ids), text=line_of(model, ids))
    assert whole.text == "Kyōto 京" and whole_characters(model, whole) == whole
    for cut in (1, 2):  # the last character is three tokens, and its bytes
        part = Line(tokens=tuple(ids[:-cut]), text=line_of(model, ids[:-cut]))
        assert part.text.endswith("�")
        found = whole_characters(model, part)
        assert found.text == "Kyōto" and line_of(model, found.tokens) == found.text
