"""Records that all parts of the system share: edits, their probes, and sources of edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

Split = Literal["train", "validation", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)
Probe = Literal["rephrase", "locality prompt"]
"""A kind of prompt that an edit may bring beside its own, and that data may not have."""
PROBES: tuple[Probe, ...] = get_args(Probe)


@dataclass(frozen=True, kw_only=True)
class Locality:
    """An unrelated prompt whose answer an edit must leave alone.

    Attributes:
        prompt: The unrelated prompt, without its answer.
        answer: The answer the dataset gives for it.
    """

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Premise:
    """A fact that a consequence rests on, beside the edit that it belongs to: a hop of a chain.

    Attributes:
        answers: What the fact has to be, the preferred wording first, then its aliases.
        prompts: Wordings in which it is asked.
        subject: Its subject, where the data names it.
        relation: Its relation, where the data names it.
        old_answers: What it is before any edit, where the data says so.
        edited: Whether an edit makes it so; where not, it is so unless an edit says otherwise.
    """

    answers: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    old_answers: tuple[str, ...] = ()
    subject: str | None = None
    relation: str | None = None
    edited: bool = False


@dataclass(frozen=True, kw_only=True)
class Consequence:
    """A question whose answer follows from an edit, though the edit does not state it.

    Attributes:
        kind: What the dataset calls it, e.g. ``multi_hop`` or ``Reasoning``.
        prompt: The question.
        answers: Its answer after the edit, the preferred wording first, then its aliases.
        premises: The facts beside the edit's own that it rests on, as far as the data names them.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...]
    premises: tuple[Premise, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One requested change of knowledge, with the prompts that judge it.

    Attributes:
        edit_id: Stable name of the edit within its data source.
        prompt: The prompt whose answer is to change.
        target: The new answer (its leading space is added by tokenisation).
        rephrases: Equivalent prompts that must give the same target; the first is the default.
        locality: Unrelated prompts whose answers must stay; the first is the default.
        old_target: The answer before the edit, where the data gives it.
        subject: The subject as it occurs in `prompt`, where the data gives it.
        subject_span: First character of the subject in `prompt` and the one after its last, where
            the data says which one: the slot of a template.
        relation: What is asked of the subject, where the data names it: an edit of the same subject
            and relation rewrites the same fact.
        source: Where the record was read, e.g. ``zsre.json:17`` (file and row), for messages.
        generation_prompts: Beginnings of texts about the subject, for fluency and consistency;
            empty where the data has none, and the edit prompt stands in.
        reference_key: Name of the texts that a text about the subject should be like after the
            edit, ``relation/target``; None where the data has no such name.
        consequences: Questions whose answers follow from the edit (portability, multi-hop), with
            those answers.
        time: When the fact began to hold, or the time step that it belongs to, as the data writes
            it (see `rledit.datasets.times`); None where it does not.
    """

    edit_id: str
    prompt: str
    target: str
    rephrases: tuple[str, ...] = ()
    locality: tuple[Locality, ...] = ()
    old_target: str | None = None
    subject: str | None = None
    subject_span: tuple[int, int] | None = None
    relation: str | None = None
    source: str = ""
    generation_prompts: tuple[str, ...] = ()
    reference_key: str | None = None
    consequences: tuple[Consequence, ...] = ()
    time: str | None = None


def has_probe(edit: Edit, probe: Probe) -> bool:
    """Whether an edit brings a prompt of that kind."""
    return bool(edit.rephrases if probe == "rephrase" else edit.locality)


def asked(edit: Edit) -> list[tuple[str, str]]:
    """Every prompt of an edit with every answer that is put behind it, the old one included."""
    answers = [edit.target, *([edit.old_target] if edit.old_target else [])]
    return [
        *((prompt, answer) for prompt in (edit.prompt, *edit.rephrases) for answer in answers),
        *((x.prompt, answer) for x in edit.locality for answer in (x.answer, edit.target)),
        *((item.prompt, answer) for item in edit.consequences for answer in item.answers),
    ]


@runtime_checkable
class EditSource(Protocol):
    """A dataset that hands out edits by split; train and evaluation never share a fact."""

    @property
    def name(self) -> str:
        """Name of the dataset."""
        ...

    @property
    def data_hash(self) -> str:
        """SHA-256 of the content a draw depends on."""
        ...

    def sizes(self) -> dict[str, int]:
        """Number of facts per pool, e.g. ``{"train": 800, "locality": 600, ...}``."""
        ...

    def draw(self, split: Split, n: int, seed: int) -> list[Edit]:
        """Draw a stream of `n` edits, the same for the same arguments.

        Raises:
            ValueError: The split holds fewer than `n` edits.
        """
        ...
