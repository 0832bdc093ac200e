"""Items of downstream tasks (GLUE, MMLU, dialogue): recognised, checked and counted.

Two tasks may share their keys (CoLA and SST-2; MRPC and RTE): then the file's name decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from rledit.datasets.errors import RowError, RowErrors
from rledit.datasets.fields import Fields, Place
from rledit.datasets.rows import RowFile
from rledit.datasets.values import mismatch


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Keys of one kind of item.

    Attributes:
        tasks: Tasks that use it, as their files are named.
        keys: Required keys with the type of their values.
        text: Keys that make up the question, to find items shared between files.
        label: Key of the right answer.
        options: Key of the list of answers, for multiple choice.
        n_options: How many there are, where the task has a fixed number.
        labels: What the right answer may be; None where it is one of the options.
    """

    tasks: tuple[str, ...]
    keys: dict[str, type]
    text: tuple[str, ...]
    label: str
    options: str | None = None
    n_options: int | None = None
    labels: tuple[int | str, ...] | None = None


_PAIR = ("sentence1", "sentence2")
_LETTERS = {letter: index for index, letter in enumerate("ABCDEFGHIJ")}
_KINDS = {str: "text", int: "a whole number", list: "a list"}

SCHEMAS: tuple[Schema, ...] = (
    Schema(
        tasks=("cola", "sst2"),
        keys={"sentence": str, "label": int, "idx": int},
        text=("sentence",),
        label="label",
        labels=(0, 1),
    ),
    Schema(
        tasks=("sentiment_analysis",),
        keys={"sentence": str, "label": str},
        text=("sentence",),
        label="label",
        labels=("0", "1"),
    ),
    Schema(
        tasks=("mrpc", "rte"),
        keys={"sentence1": str, "sentence2": str, "label": int, "idx": int},
        text=_PAIR,
        label="label",
        labels=(0, 1),
    ),
    Schema(
        tasks=("nli",),
        keys={"sentence1": str, "sentence2": str, "label": str},
        text=_PAIR,
        label="label",
        labels=("entailment", "not_entailment"),
    ),
    Schema(
        tasks=("mmlu",),
        keys={"question": str, "subject": str, "choices": list, "answer": int},
        text=("question", "choices"),
        label="answer",
        options="choices",
        n_options=4,
    ),
    Schema(
        tasks=("dialogue",),
        keys={"article": str, "options": list, "answers": str},
        text=("article", "options"),
        label="answers",
        options="options",
    ),
)


@dataclass(frozen=True, kw_only=True)
class DownstreamReport:
    """The items of one file.

    Attributes:
        path: Path as it was given.
        task: Task name; names joined by " or " where neither keys nor file name decide.
        n_items: Number of items.
        labels: Items per label.
        texts: The questions, to compare files.
        data_hash: sha256 of the file's bytes.
    """

    path: str
    task: str
    n_items: int
    labels: dict[str, int]
    texts: frozenset[str]
    data_hash: str

    @property
    def constant_f1(self) -> float:
        """Weighted F1 in percent of always giving the most frequent label.

        With share p of that label its F1 is 2p / (1 + p), the other labels' F1 is 0. A model
        below this gains by collapsing onto one answer.
        """
        share = max(self.labels.values()) / self.n_items
        return 100 * share * 2 * share / (1 + share)


def find_schema(row: object) -> Schema | None:
    """The schema whose keys and types a row has, or None."""
    if not isinstance(row, Mapping):
        return None
    fitting = (
        schema
        for schema in SCHEMAS
        if all(isinstance(row.get(key), kind) for key, kind in schema.keys.items())
    )
    return next(fitting, None)


def map_downstream(file: RowFile, schema: Schema) -> DownstreamReport:
    """Check every item against the schema of the file.

    Raises:
        RowErrors: Items lack a key, have another type or another number of options, or name an
            answer that the task does not have.
    """
    labels: Counter[str] = Counter()
    texts, errors = set(), []
    for number, row in file.rows:
        place = Place(file=file.path, row=number)
        try:
            _check(row, schema, place)
        except RowError as error:
            errors.append(error)
            continue
        labels[str(row[schema.label])] += 1
        texts.add(" | ".join(_flat(row[key]) for key in schema.text))
    if errors:
        raise RowErrors(errors)
    return DownstreamReport(
        path=file.path,
        task=_task(file.path, schema),
        n_items=len(file.rows),
        labels=dict(sorted(labels.items())),
        texts=frozenset(texts),
        data_hash=file.data_hash,
    )


def _check(row: Any, schema: Schema, place: Place) -> None:
    fields = Fields(row, place)
    for key, kind in schema.keys.items():
        found = fields.value(key)
        if not isinstance(found, kind) or isinstance(found, bool):
            fields.fail(key, mismatch(found, _KINDS[kind]))
        if kind is str:
            fields.text(key)
    label = row[schema.label]
    if schema.labels is not None and label not in schema.labels:
        known = " or ".join(map(repr, schema.labels))
        hidden = "; -1 marks items whose answers are not published" if label == -1 else ""
        fields.fail(schema.label, f"is {label!r}, not {known}{hidden}")
    if schema.options is not None:
        options = fields.texts(schema.options)
        if schema.n_options not in (None, len(options)):
            fields.fail(
                schema.options,
                f"has {len(options)} answers, and the task is asked with {schema.n_options}; leave "
                "the row out",
            )
        if len(options) != len(row[schema.options]):
            fields.fail(schema.options, "has a blank or missing answer among its answers")
        index = label if isinstance(label, int) else _LETTERS.get(label.strip().upper(), -1)
        if not 0 <= index < len(options):
            fields.fail(schema.label, f"is {label!r}, but there are {len(options)} options")


def _flat(value: Any) -> str:
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value).strip()


def _task(path: str, schema: Schema) -> str:
    stem = PurePosixPath(path).stem.lower()
    named = [task for task in schema.tasks if task in stem]
    return named[0] if len(named) == 1 else " or ".join(schema.tasks)
