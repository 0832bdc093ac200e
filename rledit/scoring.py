"""Score the edits of a stream: three kinds of prompts, every protocol, one pass over the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rledit.metrics import Protocol, Reading, read
from rledit.model import EditableModel
from rledit.records import Edit
from rledit.tokenization import Encoder, Sample

Probes = Literal["first", "all"]


@dataclass(frozen=True, kw_only=True)
class EditScore:
    """One edit under one protocol, in percent; None where the edit has no such prompt.

    Attributes:
        edit_index: Place in the stream.
        protocol: Name of the protocol.
        efficacy: The edit prompt gives the target.
        generalization: The rephrased prompts give the target.
        specificity: The unrelated prompts give the dataset's answer.
        specificity_self: The unrelated prompts give what the unedited model gave.
        superseded: A later edit of the scored stream rewrites the same prompt.
    """

    edit_index: int
    protocol: str
    efficacy: float
    generalization: float | None
    specificity: float | None
    specificity_self: float | None
    superseded: bool


@dataclass(frozen=True, eq=False)
class _Probes:
    """Tokenised prompts of one edit."""

    edit: Sample
    equivalent: tuple[Sample, ...]
    unrelated: tuple[Sample, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        return (self.edit, *self.equivalent, *self.unrelated)


class Scorer:
    """Scores a stream's edits on the current weights.

    The unedited model's answers to unrelated prompts are read when the scorer is made.

    Args:
        model: The model, unedited.
        edits: All edits of the stream, in order.
        protocols: The protocols to apply.
        probes: Use the first rephrase and locality prompt of each edit, or all of them.

    Attributes:
        resident: Whether the trunk's cache holds the prompts of the whole stream.

    Raises:
        TokenizationError: A prompt breaks the token contract.
    """

    def __init__(
        self,
        model: EditableModel,
        edits: Sequence[Edit],
        protocols: Sequence[Protocol],
        probes: Probes = "first",
    ) -> None:
        self._model = model
        self._edits = tuple(edits)
        self._protocols = tuple(protocols)
        self._probes = [_tokenise(model.encoder, edit, probes) for edit in edits]
        samples = [s for p in self._probes for s in p.samples]
        self.resident = model.trunk.fits(samples)
        if self.resident:
            model.trunk.prefetch(model.chunks(samples))
        unrelated = [s for p in self._probes for s in p.unrelated]
        with model.weights.unedited():
            readings = iter(read(model, unrelated))
        self._before = [[next(readings) for _ in p.unrelated] for p in self._probes]

    def score(self, n_edits: int) -> list[EditScore]:
        """Score the first `n_edits` edits, in one pass."""
        last_write = {e.prompt: i for i, e in enumerate(self._edits[:n_edits])}
        chosen = self._probes[:n_edits]
        readings = iter(read(self._model, [s for p in chosen for s in p.samples]))
        scores: list[EditScore] = []
        for i, probes in enumerate(chosen):
            own = [next(readings) for _ in probes.samples]
            superseded = last_write[self._edits[i].prompt] != i
            scores += [self._judge(i, p, own, superseded) for p in self._protocols]
        return scores

    def _judge(
        self, i: int, protocol: Protocol, readings: list[Reading], superseded: bool
    ) -> EditScore:
        split = 1 + len(self._probes[i].equivalent)
        unrelated = readings[split:]
        return EditScore(
            edit_index=i,
            protocol=protocol.name,
            efficacy=100 * protocol.score(readings[0]),
            generalization=_percent([protocol.score(r) for r in readings[1:split]]),
            specificity=_percent([protocol.score(r) for r in unrelated]),
            specificity_self=_percent(
                [
                    protocol.agreement(now, before)
                    for now, before in zip(unrelated, self._before[i], strict=True)
                ]
            ),
            superseded=superseded,
        )


def count_contradicting(edits: Sequence[Edit]) -> int:
    """Edits whose prompt another edit of the stream sets to a different target."""
    targets: dict[str, set[str]] = {}
    for edit in edits:
        targets.setdefault(edit.prompt, set()).add(edit.target.strip())
    return sum(len(targets[edit.prompt]) > 1 for edit in edits)


def _tokenise(encoder: Encoder, edit: Edit, probes: Probes) -> _Probes:
    n = None if probes == "all" else 1
    where = edit.source or edit.edit_id
    return _Probes(
        encoder.sample(edit.prompt, edit.target, where),
        tuple(encoder.sample(p, edit.target, where) for p in edit.rephrases[:n]),
        tuple(encoder.sample(x.prompt, x.answer, where) for x in edit.locality[:n]),
    )


def _percent(shares: list[float]) -> float | None:
    return 100 * sum(shares) / len(shares) if shares else None
