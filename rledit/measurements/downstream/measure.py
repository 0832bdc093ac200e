"""Scores of downstream tasks: items asked of the model zero-shot, and their answers counted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rledit.decoding import decode, ends_text
from rledit.measurements.downstream.tasks import Item
from rledit.model import EditableModel
from rledit.protocols import read

MAX_NEW_TOKENS = 5
NO_ANSWER = -1


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """How a model does at one task, in percent.

    Attributes:
        f1: Weighted F1 of what the model writes; an answer that is none of the possible ones is
            wrong.
        probability: Weighted F1 of the likeliest answer, by mean log-likelihood per token.
        answered: Share of items that were given one of the possible answers.
    """

    f1: float
    probability: float
    answered: float


def measure_downstream(
    model: EditableModel, tasks: Mapping[str, Sequence[Item]]
) -> dict[str, TaskScore]:
    """Score every task on the current weights.

    Raises:
        TokenizationError: An item does not fit the model.
    """
    items = [item for own in tasks.values() for item in own]
    written = iter(_written(model, items))
    likeliest = iter(_likeliest(model, items))
    scores: dict[str, TaskScore] = {}
    for name, own in tasks.items():
        right = [item.right for item in own]
        texts = [next(written) for _ in own]
        scores[name] = TaskScore(
            f1=100 * weighted_f1(right, texts),
            probability=100 * weighted_f1(right, [next(likeliest) for _ in own]),
            answered=100 * sum(place != NO_ANSWER for place in texts) / len(texts),
        )
    return scores


def weighted_f1(right: Sequence[int], given: Sequence[int]) -> float:
    """Mean F1 over the classes that are right somewhere, weighted by how often; 0 to 1."""
    total = 0.0
    for label in set(right):
        hits = sum(a == b == label for a, b in zip(right, given, strict=True))
        total += right.count(label) * 2 * hits / (right.count(label) + given.count(label))
    return total / len(right)


def answer_in(text: str, answers: Sequence[str]) -> int:
    """Place of the answer that occurs first in a text as a word, or `NO_ANSWER`.

    A single capital letter must be one in the text: "a" is an article, not option A.
    """
    for word in re.findall(r"\w+", text):
        for place, answer in enumerate(answers):
            if word == answer or (len(answer) > 1 and word.lower() == answer):
                return place
    return NO_ANSWER


def _written(model: EditableModel, items: Sequence[Item]) -> list[int]:
    prompts = [item.prompt for item in items]
    tokens = decode(model, prompts, MAX_NEW_TOKENS, ends_text(model))
    tokenizer = model.encoder.tokenizer
    return [
        answer_in(tokenizer.decode(ids, skip_special_tokens=True), item.answers)
        for ids, item in zip(tokens, items, strict=True)
    ]


def _likeliest(model: EditableModel, items: Sequence[Item]) -> list[int]:
    samples = [model.encoder.sample(i.prompt, answer) for i in items for answer in i.answers]
    losses = iter([reading.nll for reading in read(model, samples)])
    places = []
    for item in items:
        own = [next(losses) for _ in item.answers]
        places.append(own.index(min(own)))
    return places
