"""Asks a model for facts before and after a batch, and tells which edits took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rledit.decoding import write_lines
from rledit.finite import NonFiniteError
from rledit.model import EditableModel
from rledit.protocols import exact_match
from rledit.protocols.reading import Reading, read
from rledit.records import Edit
from rledit.tokenization import Sample
from rledit.writing_systems import writes_spaces
from rledit.written_answers import target_logprobs

_MORE_TOKENS = 3

Said = Literal["took", "goes on", "other"]
"""A target; a target with more of a word behind it, as "Astanaab" for "Astana"; another answer."""


@dataclass(frozen=True, kw_only=True)
class FactResult:
    """One fact before and after.

    Attributes:
        edit: The fact.
        before: What the model wrote behind the prompt before the edit.
        after: What it writes now.
        took: Whether the model's most likely tokens behind the prompt are the target's.
        logprob_before, logprob_after: Log-probability of the target behind the prompt, the sum
            over its tokens in nats; None where it is not finite.
        rephrases: How many of its rephrases give the target.
        locality: How many of its unrelated prompts are answered as before.
        note: What to know of it; "" if nothing.
    """

    edit: Edit
    before: str
    after: str
    took: bool
    logprob_before: float | None
    logprob_after: float | None
    rephrases: int
    locality: int
    note: str = ""

    def record(self) -> dict[str, Any]:
        """What was found, as plain JSON, without the fact itself."""
        return {k: v for k, v in vars(self).items() if k != "edit"}


@dataclass(frozen=True, kw_only=True)
class _Answers:
    texts: list[str]
    logprobs: list[float | None]
    own: list[bool]
    rephrased: list[int]
    unrelated: list[list[Reading]]


class Judge:
    """Asks a model for some facts.

    Args:
        model: The model as it is before they are edited, see `EditableModel`.
        edits: The facts.
        answers: Whether `results` will be asked for.
    """

    def __init__(self, model: EditableModel, edits: Sequence[Edit], answers: bool = True) -> None:
        encoder = model.encoder
        self.edits = tuple(edits)
        self._own = [encoder.sample(e.prompt, e.target) for e in edits]
        self._rephrased = [[encoder.sample(p, e.target) for p in e.rephrases] for e in edits]
        self._unrelated = [[encoder.sample(x.prompt, x.answer) for x in e.locality] for e in edits]
        self._limits = [len(s.answer_ids) + _MORE_TOKENS for s in self._own]
        self._before = self._answers(model) if answers else None

    def said(self, model: EditableModel) -> list[Said]:
        """What the model says of each fact, see `said`."""
        return said(model, self.edits)

    def results(self, model: EditableModel) -> list[FactResult]:
        """Every fact, before and now."""
        now, then = self._answers(model), self._before
        assert then is not None
        return [
            FactResult(
                edit=edit,
                before=then.texts[i],
                after=now.texts[i],
                took=now.own[i],
                logprob_before=then.logprobs[i],
                logprob_after=now.logprobs[i],
                rephrases=now.rephrased[i],
                locality=sum(
                    bool(exact_match.agreement(a, b))
                    for a, b in zip(now.unrelated[i], then.unrelated[i], strict=True)
                ),
            )
            for i, edit in enumerate(self.edits)
        ]

    def _answers(self, model: EditableModel) -> _Answers:
        groups = [self._rephrased, self._unrelated]
        readings = iter(read(model, [s for group in groups for own in group for s in own]))
        rephrased = [
            sum(bool(exact_match.score(next(readings))) for _ in group) for group in self._rephrased
        ]
        unrelated = [[next(readings) for _ in group] for group in self._unrelated]
        return _Answers(
            texts=texts_of(model, [edit.prompt for edit in self.edits], self._limits),
            logprobs=target_logprobs(model, self._own),
            own=took(model, self.edits),
            rephrased=rephrased,
            unrelated=unrelated,
        )


def took(model: EditableModel, edits: Sequence[Edit]) -> list[bool]:
    """Whether the model's most likely tokens behind each prompt are the target's, and end there.

    The token behind the target must not go on with its last word: an answer of "Astanaab" is not
    "Astana".
    """
    return [word == "took" for word in said(model, edits)]


def said(model: EditableModel, edits: Sequence[Edit]) -> list[Said]:
    """As `took`, telling answers that begin with the target and go on from those that do not."""
    samples = [_and_next(model.encoder.sample(e.prompt, e.target)) for e in edits]
    found: list[Said] = []
    for edit, reading in zip(edits, read(model, samples), strict=True):
        if not bool((reading.predicted[:-1] == reading.expected[:-1]).all()):
            found.append("other")
        else:
            found.append("goes on" if _goes_on(model, edit.target, reading) else "took")
    return found


def _goes_on(model: EditableModel, target: str, reading: Reading) -> bool:
    """Whether the token behind a target is more of its last word."""
    decode = model.encoder.tokenizer.decode
    answer = str(decode(reading.expected[:-1].tolist()))
    longer = str(decode([*reading.expected[:-1].tolist(), int(reading.predicted[-1])]))
    rest = longer.removeprefix(answer)
    return writes_spaces(target) and longer.startswith(answer) and rest[:1].isalnum()


def _and_next(sample: Sample) -> Sample:
    """The sample with one more label behind the answer, whatever it says."""
    last = sample.labels[-1:]
    return Sample(torch.cat([sample.input_ids, last]), torch.cat([sample.labels, last]))


def texts_of(
    model: EditableModel, prompts: Sequence[str], limits: Sequence[int] | int
) -> list[str]:
    """What a model writes behind prompts; "(no numbers)" where it gives none."""
    if not prompts:
        return []
    try:
        return [line.text for line in write_lines(model, prompts, limits, blank_first=True)]
    except NonFiniteError:
        return ["(no numbers)"] * len(prompts)


def scores_of(found: Sequence[FactResult]) -> dict[str, float | None]:
    """Efficacy, generalisation and locality of some facts, in percent."""

    def percent(right: int, asked: int) -> float | None:
        return round(100 * right / asked, 2) if asked else None

    return {
        "efficacy": percent(sum(f.took for f in found), len(found)),
        "generalization": percent(
            sum(f.rephrases for f in found), sum(len(f.edit.rephrases) for f in found)
        ),
        "locality": percent(
            sum(f.locality for f in found), sum(len(f.edit.locality) for f in found)
        ),
    }
