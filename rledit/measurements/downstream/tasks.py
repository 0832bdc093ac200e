"""The six tasks: how an item of each is asked, and what may be answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

ITEMS_PER_TASK = 100

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question with its possible answers.

    Attributes:
        prompt: The question as it is put to the model.
        answers: What may be answered.
        right: Place of the right one in `answers`.
    """

    prompt: str
    answers: tuple[str, ...]
    right: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        name: Name in metrics.
        file: Stem of its file of items.
        prompt: Words the question of a row.
        answers: What may be answered.
        right: Place of a row's right answer.
    """

    name: str
    file: str
    prompt: Callable[[Row], str]
    answers: tuple[str, ...]
    right: Callable[[Row], int]


def items_of(task: Task, rows: Sequence[Row], limit: int = ITEMS_PER_TASK) -> tuple[Item, ...]:
    """The first `limit` rows of a task's file as items."""
    return tuple(
        Item(prompt=task.prompt(row), answers=task.answers, right=task.right(row))
        for row in rows[:limit]
    )


def _sst(row: Row) -> str:
    return (
        f"Review: {row['sentence'].strip()}\n"
        "Is the sentiment of the review positive or negative? Answer:"
    )


def _cola(row: Row) -> str:
    return f"Sentence: {row['sentence'].strip()}\nIs the sentence grammatical, yes or no? Answer:"


def _mrpc(row: Row) -> str:
    return (
        f"First: {row['sentence1'].strip()}\nSecond: {row['sentence2'].strip()}\n"
        "Do both sentences say the same, yes or no? Answer:"
    )


def _entailment(row: Row) -> str:
    return (
        f"Text: {row['sentence1'].strip()}\nStatement: {row['sentence2'].strip()}\n"
        "Does the statement follow from the text, yes or no? Answer:"
    )


def _mmlu(row: Row) -> str:
    options = zip("ABCD", row["choices"], strict=True)
    lines = "\n".join(f"{letter}. {str(option).strip()}" for letter, option in options)
    return f"Question: {row['question'].strip()}\n{lines}\nWhich option is right? Answer:"


_YES_NO = ("yes", "no")

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                name="sst",
                file="sst2",
                prompt=_sst,
                answers=("negative", "positive"),
                right=lambda row: int(row["label"]),
            ),
            Task(
                name="mmlu",
                file="mmlu",
                prompt=_mmlu,
                answers=("A", "B", "C", "D"),
                right=lambda row: int(row["answer"]),
            ),
            Task(
                name="mrpc",
                file="mrpc",
                prompt=_mrpc,
                answers=_YES_NO,
                right=lambda row: 1 - int(row["label"]),
            ),
            Task(
                name="cola",
                file="cola",
                prompt=_cola,
                answers=_YES_NO,
                right=lambda row: 1 - int(row["label"]),
            ),
            # In GLUE's files label 0 of RTE is entailment.
            Task(
                name="rte",
                file="rte",
                prompt=_entailment,
                answers=_YES_NO,
                right=lambda row: int(row["label"]),
            ),
            Task(
                name="nli",
                file="nli",
                prompt=_entailment,
                answers=_YES_NO,
                right=lambda row: int(row["label"] != "entailment"),
            ),
        )
    }
)
