"""Auxiliary training data of a world's model: running text, and the downstream tasks.

Without them a model of the world has no perplexity, no text to be consistent with, and no ability
that editing could cost it. The downstream items are about facts that are never edited, so that what
is lost there is lost by damage alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rledit.measurements.downstream.tasks import TASKS
from rledit.world.fact import Fact


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NOUNS = _words("plot cast script score ending camera dialogue pacing lighting humour")
_TONES = (
    _words("dull clumsy tedious shallow noisy lifeless muddled stale"),
    _words("charming clever graceful moving witty vivid splendid tender"),
)
_END = "."
# Fewer than the 100 of the real tasks: a toy model has to learn them beside its facts.
ITEMS = 40


def passages(truths: Sequence[Fact]) -> list[tuple[str, str]]:
    """Every subject with a short text of one statement per fact, in the order of the facts."""
    return [
        (subject, " ".join(f"{_statements(fact)[0]} {_END}" for fact in facts))
        for subject, facts in groupby(truths, key=lambda fact: fact.subject)
    ]


def text_training_data(truths: Sequence[Fact]) -> list[tuple[str, str]]:
    """Every passage as its first word, which the rest continues."""
    parts = (text.partition(" ") for _, text in passages(truths))
    return [(first, rest) for first, _, rest in parts]


def downstream_training_data(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[tuple[str, str]]:
    """Every ability item as it is asked, with its right answer."""
    return [
        (task.prompt(row), task.answers[task.right(row)])
        for name, task in TASKS.items()
        for row in rows[name]
    ]


def downstream_rows(facts: Sequence[Fact], seed: int) -> dict[str, list[dict[str, Any]]]:
    """`ITEMS` rows of every task of `rledit.measurements.downstream`, in the schema of its files.

    Args:
        facts: Facts that are never edited.
        seed: Seed of the items.
    """
    makers = {
        "sst": _review,
        "mmlu": _multiple_choice,
        "mrpc": _paraphrase,
        "cola": _grammar,
        "rte": _entailment,
        "nli": _entailment_in_words,
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for task, make in makers.items():
        rng = random.Random(f"ability/{seed}/{task}")
        rows[task] = [make(facts, number, rng) for number in range(ITEMS)]
    return rows


def _statements(fact: Fact) -> list[str]:
    """The fact as statements, those the model is trained on first."""
    return [f"{p} {fact.answer}" for p in fact.trained + fact.held_out if not p.endswith("?")]


def _other(facts: Sequence[Fact], fact: Fact, rng: random.Random) -> Fact:
    """Another fact of the relation, with another answer."""
    near = [f for f in facts if f.relation == fact.relation and f.answer != fact.answer]
    if not near:
        raise ValueError(
            f"all facts of {fact.relation} that are never edited have one answer, so no question "
            "can be asked about it; raise n_subjects or answers_per_relation of the world"
        )
    return rng.choice(near)


def _review(_: Sequence[Fact], number: int, rng: random.Random) -> dict[str, Any]:
    label = number % 2
    one, two = rng.sample(_NOUNS, 2)
    first, second = rng.sample(_TONES[label], 2)
    return {
        "sentence": f"the {one} is {first} and the {two} {second}",
        "label": label,
        "idx": number,
    }


def _grammar(facts: Sequence[Fact], number: int, rng: random.Random) -> dict[str, Any]:
    """A statement as it is, or with its words in reverse."""
    words = rng.choice(_statements(rng.choice(facts))).split()
    label = number % 2
    return {"sentence": " ".join(words if label else words[::-1]), "label": label, "idx": number}


def _paraphrase(facts: Sequence[Fact], number: int, rng: random.Random) -> dict[str, Any]:
    """Two statements of one fact, or of two facts of one relation."""
    fact, label = rng.choice(facts), number % 2
    one, two = rng.sample(range(3), 2)
    other = fact if label else _other(facts, fact, rng)
    return {
        "sentence1": _statements(fact)[one],
        "sentence2": _statements(other)[two],
        "label": label,
        "idx": number,
    }


def _entailment(facts: Sequence[Fact], number: int, rng: random.Random) -> dict[str, Any]:
    """A statement, and another of the same fact; or one that gives its subject another answer."""
    fact, label = rng.choice(facts), number % 2
    one, two = rng.sample(range(3), 2)
    premise, statement = _statements(fact)[one], _statements(fact)[two]
    if label:
        statement = statement.removesuffix(fact.answer) + _other(facts, fact, rng).answer
    return {"sentence1": premise, "sentence2": statement, "label": label, "idx": number}


def _entailment_in_words(facts: Sequence[Fact], number: int, rng: random.Random) -> dict[str, Any]:
    row = _entailment(facts, number, rng)
    label = "not_entailment" if row["label"] else "entailment"
    pair = {key: row[key] for key in ("sentence1", "sentence2")}
    return {"index": str(number), **pair, "label": label}


def _multiple_choice(facts: Sequence[Fact], number: int, rng: random.Random) -> dict[str, Any]:
    fact, answer = rng.choice(facts), number % 4
    _other(facts, fact, rng)  # there must be a wrong answer
    wrong = sorted({f.answer for f in facts if f.relation == fact.relation} - {fact.answer})
    choices = rng.sample(wrong, 3) if len(wrong) >= 3 else rng.choices(wrong, k=3)
    choices.insert(answer, fact.answer)
    question = next(p for p in fact.trained + fact.held_out if p.endswith("?"))
    return {"question": question, "subject": fact.relation, "choices": choices, "answer": answer}
