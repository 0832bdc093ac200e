"""Score the edits of a stream: three kinds of prompts, every protocol, one pass over the model."""

from __future__ import annotations

import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from rledit.free_answers import FreeForm, free_answers
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.protocols import Protocol, Reading, generate, read, wild
from rledit.ranks import Deal
from rledit.records import Edit
from rledit.superseded import Facts, Standing, count_contradicting
from rledit.tokenization import Encoder, Sample

__all__ = [
    "EditScore",
    "FreeAnswer",
    "Probes",
    "Question",
    "Questions",
    "Scorer",
    "count_contradicting",
    "questions",
]

Probes = Literal["first", "all", "drawn"]
"""Which rephrases and unrelated prompts of an edit are asked: the first, all, or one by lot."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FreeAnswer:
    """A free answer that a judge is to score.

    Attributes:
        probe: Whether it answers the prompt of the edit or a rephrase.
        probe_index: Which of the edit's prompts of that kind that were asked.
        prompt: The prompt as text.
        target: The answer that should be there.
        answer: What the model wrote.
        matches: Whether it is the target by comparison, as in the protocol `wild`.
        counted: Whether it counts in the edit's score: it does not where a later edit answers the
            rephrase otherwise.
    """

    probe: Literal["edit", "rephrase"]
    probe_index: int
    prompt: str
    target: str
    answer: str
    matches: bool
    counted: bool


@dataclass(frozen=True, kw_only=True)
class EditScore:
    """One edit under one protocol, in percent; None where it is not defined.

    That is so where the edit has no such prompt, where all of them are superseded by other edits of
    the scored stream, and for a choice between an answer and no other. What is superseded says
    `rledit.superseded`.

    Attributes:
        edit_index: Place in the stream.
        protocol: Name of the protocol.
        efficacy: The edit prompt gives the target.
        generalization: The rephrased prompts give the target.
        specificity: The unrelated prompts give the dataset's answer.
        specificity_self: The unrelated prompts give what the unedited model gave.
        superseded: A later edit of the scored stream rewrites the same fact; the scores are those
            of its own prompts all the same, and belong into no mean.
        n_rephrases_superseded: Rephrases left out of an edit that is not superseded.
        n_locality_superseded: Locality prompts left out of one.
        free: Under a protocol whose answers are judged later, these answers.
    """

    edit_index: int
    protocol: str
    efficacy: float | None
    generalization: float | None
    specificity: float | None
    specificity_self: float | None
    superseded: bool
    n_rephrases_superseded: int = 0
    n_locality_superseded: int = 0
    free: tuple[FreeAnswer, ...] = ()


@dataclass(frozen=True, eq=False)
class Question:
    """One prompt of an edit with the answer that should be there.

    Attributes:
        sample: Prompt and expected answer as tokens.
        rival: The same prompt with the answer that should not be there; None where there is none,
            or where no protocol looks at it.
        prompt: The prompt as the data has it.
        asked: The prompt as it is asked, with an instruction where the method has one.
        answer: The expected answer as text.
    """

    sample: Sample
    rival: Sample | None
    prompt: str
    asked: str
    answer: str


@dataclass(frozen=True, eq=False)
class Questions:
    """All questions of one edit."""

    edit: Question
    equivalent: tuple[Question, ...]
    unrelated: tuple[Question, ...]

    @property
    def all(self) -> tuple[Question, ...]:
        """The edit prompt, the rephrases, the unrelated prompts."""
        return (self.edit, *self.equivalent, *self.unrelated)


def questions(
    encoder: Encoder,
    edit: Edit,
    protocols: Sequence[Protocol],
    probes: Probes = "first",
    seed: int = 0,
) -> Questions:
    """The questions that judge an edit, tokenised.

    The rival of the new answer is the old one, and the new answer is the rival of an unrelated
    prompt's own. An answer is no rival of itself.

    Args:
        encoder: Tokenises under the model's contract.
        edit: The edit.
        protocols: Decide whether rivals are needed.
        probes: Which rephrases and locality prompts are used.
        seed: Seed of the lots, where they are drawn.

    Raises:
        TokenizationError: A prompt breaks the token contract; names file and row.
    """
    rephrases = _chosen(edit.rephrases, probes, f"{seed}/{edit.edit_id}/rephrase")
    locality = _chosen(edit.locality, probes, f"{seed}/{edit.edit_id}/locality")
    where = edit.source or edit.edit_id
    rivals = any("rival" in protocol.asks for protocol in protocols)

    def ask(prompt: str, asked: str, answer: str, rival: str | None) -> Question:
        against = rival if rivals and rival and rival.strip() != answer.strip() else None
        return Question(
            sample=encoder.sample(asked, answer, where),
            rival=encoder.sample(asked, against, where) if against else None,
            prompt=prompt,
            asked=asked,
            answer=answer,
        )

    def own(prompt: str) -> Question:
        return ask(prompt, encoder.asked(prompt), edit.target, edit.old_target)

    return Questions(
        edit=own(edit.prompt),
        equivalent=tuple(own(p) for p in rephrases),
        unrelated=tuple(ask(x.prompt, x.prompt, x.answer, edit.target) for x in locality),
    )


class Scorer:
    """Scores a stream's edits on the current weights, by all protocols in one pass.

    The unedited model's answers to unrelated prompts, or to all, are read when the scorer is made.

    Args:
        model: The model, unedited.
        edits: All edits of the stream, in order.
        protocols: The protocols to apply.
        probes: Which rephrases and locality prompts of each edit are used.
        seed: Seed of the lots, where probes are drawn.
        beside: Samples that somebody else will run; the prefix cache has to hold them as well.
        places: Places in the stream of the edits that are scored, ascending; not given: all.
            The others supersede and contradict all the same.
        prefetch: Runs all samples up to the first edited layer; None: `PrefixCache.prefetch`.
        unedited: Asked, once the samples are prefetched, for what an earlier scorer of the same
            found, see the attribute; where it has nothing, or is None, the model is read.
        form: How free answers are asked for, where a protocol wants them.
        whole: Whether the unedited model reads all prompts, for `score_unedited`.
        unchanging: Nothing changes the model's answers: all prompts are read once, for all scores.

    Attributes:
        deal: Which rank asks which prompt, those of `beside` among them.
        resident: Whether the prefix cache holds all prompts that are asked.
        unedited: The unedited model's readings of all unrelated prompts, or of all prompts of all
            edits where it read them whole, one after another.
        unedited_seconds: What reading them took; nearly nothing where they were found.

    Raises:
        TokenizationError: A prompt breaks the token contract.
        ValueError: What an earlier scorer found is not of these prompts.
    """

    def __init__(
        self,
        model: EditableModel,
        edits: Sequence[Edit],
        protocols: Sequence[Protocol],
        probes: Probes = "first",
        *,
        seed: int = 0,
        beside: Sequence[Sample] = (),
        places: Sequence[int] | None = None,
        prefetch: Callable[[Sequence[Sample]], None] | None = None,
        unedited: Callable[[], Sequence[Reading] | None] | None = None,
        form: FreeForm | None = None,
        whole: bool = False,
        unchanging: bool = False,
    ) -> None:
        whole = whole or unchanging
        self._model = model
        self._facts = Facts(edits)
        self._places = range(len(edits)) if places is None else places
        self._protocols = tuple(protocols)
        self._writes = any("text" in protocol.asks for protocol in protocols)
        free = any("free" in protocol.asks for protocol in protocols)
        self._form = (form or FreeForm()) if free else None
        self._questions = [
            questions(model.encoder, edits[i], protocols, probes, seed) for i in self._places
        ]
        every = [q for item in self._questions for q in item.all]
        samples = [s for q in every for s in (q.sample, q.rival) if s is not None]
        self.deal = Deal([*samples, *beside], model.ranks)
        self.resident = model.prefix_cache.fits([*samples, *beside])
        if self.resident and prefetch is not None:
            prefetch(samples)
        elif self.resident:
            own = model.own_micro_batches(samples, self.deal.own(samples), SINGLE_PASS_TOKENS)
            model.prefix_cache.prefetch(own)
        asked = every if whole else [q for item in self._questions for q in item.unrelated]
        found = None if unedited is None else unedited()
        began = time.perf_counter()
        if found is None:
            with model.weights.unedited():
                found = self._read(asked)
        self.unedited_seconds = time.perf_counter() - began
        if len(found) != len(asked):
            raise ValueError(f"{len(found)} readings of {len(asked)} prompts; read them again")
        self.unedited = tuple(found)
        readings = iter(self.unedited)
        before = [
            [next(readings) for _ in (item.all if whole else item.unrelated)]
            for item in self._questions
        ]
        self._before = [
            own[len(own) - len(item.unrelated) :]
            for own, item in zip(before, self._questions, strict=True)
        ]
        self._whole, self._unchanging = whole, unchanging

    def asked(self, n_edits: int) -> list[Questions]:
        """The questions of those among the first `n_edits` edits that are scored at all."""
        return self._questions[: bisect_left(self._places, n_edits)]

    def score_unedited(self) -> list[EditScore]:
        """Score all edits of the stream that are scored at all by what the unedited model read.

        Raises:
            ValueError: It has not read the stream whole.
        """
        if not self._whole:
            raise ValueError("the unedited model has read unrelated prompts alone: pass whole=True")
        return self._scores(len(self._facts.edits), self.unedited)

    def score(self, n_edits: int) -> list[EditScore]:
        """Score those among the first `n_edits` edits that are scored at all, in one pass."""
        if self._unchanging:
            return self._scores(n_edits, self.unedited)
        return self._scores(n_edits, self._read([q for i in self.asked(n_edits) for q in i.all]))

    def _scores(self, n_edits: int, found: Sequence[Reading]) -> list[EditScore]:
        """Scores after so many edits, by readings of all their prompts, and maybe of later ones."""
        standing = Standing(self._facts, n_edits)
        chosen = self.asked(n_edits)
        readings = iter(found)
        scores: list[EditScore] = []
        for item, before, i in zip(chosen, self._before, self._places, strict=False):
            own = [next(readings) for _ in item.all]
            scores += [_judge(i, p, item, own, before, standing) for p in self._protocols]
        return scores

    def _read(self, asked: Sequence[Question]) -> list[Reading]:
        """Everything the protocols look at, on the current weights."""
        samples, rivals = [q.sample for q in asked], [q.rival for q in asked]
        readings = read(self._model, samples, rivals, self.deal)
        if not self._writes and self._form is None:
            return readings
        readings = [replace(r, answer=q.answer) for r, q in zip(readings, asked, strict=True)]
        distinct = list(dict.fromkeys(q.asked for q in asked))
        if self._writes:
            texts = dict(zip(distinct, generate(self._model, distinct), strict=True))
            readings = [
                replace(r, text=texts[q.asked]) for r, q in zip(readings, asked, strict=True)
            ]
        if self._form is not None:
            lines = free_answers(self._model, distinct, self._form)
            free = dict(zip(distinct, lines, strict=True))
            readings = [
                replace(r, free_text=free[q.asked].text, free_tokens=free[q.asked].tokens)
                for r, q in zip(readings, asked, strict=True)
            ]
        return readings


def _judge(
    i: int,
    protocol: Protocol,
    asked: Questions,
    readings: list[Reading],
    before: list[Reading],
    standing: Standing,
) -> EditScore:
    """The score of the edit at place `i`, whose unrelated prompts read as `before` unedited."""
    superseded = standing.edit(i)
    split = 1 + len(asked.equivalent)
    # All of a superseded edit is left out of means; its own scores are kept to be looked at.
    equivalent = [
        protocol.score(reading)
        for reading, q in zip(readings[1:split], asked.equivalent, strict=True)
        if superseded or not standing.rephrase(i, q.prompt)
    ]
    unrelated = [
        (protocol.score(now), protocol.agreement(now, then))
        for now, then, q in zip(readings[split:], before, asked.unrelated, strict=True)
        if superseded or not standing.locality(q.prompt)
    ]
    return EditScore(
        edit_index=i,
        protocol=protocol.name,
        efficacy=_percent([protocol.score(readings[0])]),
        generalization=_percent(equivalent),
        specificity=_percent([score for score, _ in unrelated]),
        specificity_self=_percent([agreement for _, agreement in unrelated]),
        superseded=superseded,
        n_rephrases_superseded=len(asked.equivalent) - len(equivalent),
        n_locality_superseded=len(asked.unrelated) - len(unrelated),
        free=tuple(_free(i, asked, readings, standing)) if protocol.judged else (),
    )


def _free(
    i: int, asked: Questions, readings: Sequence[Reading], standing: Standing
) -> Iterator[FreeAnswer]:
    """The free answers to the prompt of the edit at place `i` and to its rephrases."""
    for n, (question, reading) in enumerate(
        zip((asked.edit, *asked.equivalent), readings, strict=False)
    ):
        text = reading.free_text or ""
        yield FreeAnswer(
            probe="rephrase" if n else "edit",
            probe_index=max(0, n - 1),
            prompt=question.prompt,
            target=question.answer,
            answer=text,
            matches=wild.matches(text, question.answer),
            counted=not n or standing.edit(i) or not standing.rephrase(i, question.prompt),
        )


def _chosen(options: Sequence[T], probes: Probes, lot: str) -> Sequence[T]:
    if probes == "drawn" and options:
        return [random.Random(lot).choice(options)]
    return options if probes == "all" else options[:1]


def _percent(shares: Sequence[float | None]) -> float | None:
    """Mean of the defined shares, in percent."""
    defined = [share for share in shares if share is not None]
    return 100 * sum(defined) / len(defined) if defined else None
