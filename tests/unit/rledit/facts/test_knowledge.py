"""Which facts a model knows: what it writes, greedily, behind the statements it is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rledit.facts import ASKED, RELATIONS, RealFact, known_counts, known_facts, known_parts
from rledit.facts import real_facts as all_facts
from rledit.facts.knowledge import PART
from rledit.facts.relations import put
from rledit.model import EditableModel
from tests.unit.helpers.knowing_model import byte_pair_tokenizer, learn, small_model

FACTS = [fact for fact in all_facts() if fact.relation == "country_capital"][: PART + 8]


def asked(fact: RealFact) -> list[str]:
    return [put(text, fact.named) for text in RELATIONS[fact.relation].statements[:ASKED]]


@pytest.fixture(scope="module")
def taught() -> EditableModel:
    """A model that has learnt every other fact, in one of two phrasings, and the rest wrong."""
    texts = [f"{prompt} {fact.answer}" for fact in FACTS for prompt in asked(fact)]
    tokenizer = byte_pair_tokenizer(texts, 400)
    model = small_model("llama", tokenizer)
    examples = [
        (prompt, fact.answer if (i + j) % 2 else FACTS[i - 1].answer)
        for i, fact in enumerate(FACTS[:12])
        for j, prompt in enumerate(asked(fact))
    ]
    learn(model, tokenizer, examples, steps=50)
    return EditableModel(model, tokenizer, ())


def straight(model: EditableModel, prompt: str, answer: str) -> bool:
    """Greedy decoding by the plain model, token by token, as long as the answer is."""
    tokenizer: Any = model.encoder.tokenizer
    ids = tokenizer(prompt)["input_ids"]
    expected = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    for token in expected:
        logits = model.model(input_ids=torch.tensor([ids])).logits
        if int(logits[0, -1].argmax()) != token:
            return False
        ids = [*ids, token]
    return True


def test_known_is_what_greedy_decoding_writes(taught: EditableModel) -> None:
    known = known_facts(taught, FACTS[:12])
    expected = {
        fact.fact_id: [j for j, p in enumerate(asked(fact)) if straight(taught, p, fact.answer)]
        for fact in FACTS[:12]
    }
    assert known == expected
    found = [len(places) for places in known.values()]
    assert 0 < sum(found) < ASKED * len(found)  # it knows some, and not all


def test_parts_are_the_same_from_wherever_they_begin(taught: EditableModel) -> None:
    parts = list(known_parts(taught, FACTS))
    assert [len(part) for part in parts] == [PART, 8]
    assert list(known_parts(taught, FACTS, start=1)) == parts[1:]
    assert {**parts[0], **parts[1]} == known_facts(taught, FACTS)


def test_counts_tell_known_of_asked_by_relation() -> None:
    known = {"country_capital/France": [0], "country_capital/Peru": [], "element_symbol/gold": [1]}
    assert known_counts(known) == {"country_capital": [1, 2], "element_symbol": [1, 1]}
