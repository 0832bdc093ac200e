"""The world as statements to verify, in the manner of FEVER (arXiv 1803.05355).

A fact becomes a claim: every prompt with an answer behind it, the true one or a false one, and the
verdict on it is what the model is asked for. An edit turns the verdict over.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rledit.world.fact import Fact

SUPPORTS, REFUTES = "SUPPORTS", "REFUTES"
VERDICTS = (SUPPORTS, REFUTES)


def claimed(
    by_subject: Mapping[str, Sequence[Fact]], answers: Mapping[str, Sequence[str]], seed: int
) -> dict[str, tuple[Fact, ...]]:
    """One claim for every fact, half of them false.

    Args:
        by_subject: The facts.
        answers: Possible answers of each relation.
        seed: Seed of which claims are false, and of what they say.
    """
    rng = random.Random(f"claims/{seed}")
    return {
        subject: tuple(_claim(fact, answers[fact.relation], rng) for fact in facts)
        for subject, facts in by_subject.items()
    }


def _claim(fact: Fact, answers: Sequence[str], rng: random.Random) -> Fact:
    wrong = rng.choice([answer for answer in answers if answer != fact.answer])
    supported = rng.random() < 0.5
    stated = fact.answer if supported else wrong
    return replace(
        fact,
        answer=SUPPORTS if supported else REFUTES,
        trained=tuple(f"{prompt} {stated}" for prompt in fact.trained),
        held_out=tuple(f"{prompt} {stated}" for prompt in fact.held_out),
    )
