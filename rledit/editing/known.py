"""Measures what editing costs a model: facts that it knew before, and its perplexity.

The facts are those that ship with the package (`rledit.facts`), as far as the unedited model knows
them and no edit is about them. Two pools that share no subject: one that settings are chosen by,
one that results are told by.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from rledit.facts import RELATIONS, RealFact, RealFacts, sentences
from rledit.facts.relations import put
from rledit.measurements.perplexity import perplexity, text_samples
from rledit.model import EditableModel
from rledit.occurrences import occurrences
from rledit.protocols import exact_match
from rledit.protocols.reading import Reading, read
from rledit.records import Edit, Locality
from rledit.tokenization import Sample

Pool = Literal["choosing", "telling"]
ASKED: Mapping[Pool, int] = {"choosing": 240, "telling": 240}
"""Facts of a pool that a model is asked for; it knows some of them."""
_SENTENCES = 24
_POOLS: Mapping[Pool, str] = {"choosing": "train", "telling": "evaluation"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What is left of what an unedited model knew.

    Attributes:
        kept: Known facts that it still answers right.
        known: Facts that it knew.
        perplexity: Of a few sentences that ship with the package.
    """

    kept: int
    known: int
    perplexity: float

    @property
    def share(self) -> float:
        """Share of the known facts that are kept; 1 where none was known."""
        return self.kept / self.known if self.known else 1.0


class Knowledge:
    """Facts that a model knew before it was edited.

    Args:
        model: The model, unedited.
        pool: Which facts.
        known: Ids of the facts that it knows, where that was asked before.

    Attributes:
        known: Ids of the facts that it knows: its most likely tokens behind the first statement of
            the fact's relation are the answer.
    """

    def __init__(
        self, model: EditableModel, pool: Pool, known: Sequence[str] | None = None
    ) -> None:
        facts = {fact.fact_id: fact for fact in asked_facts(pool)}
        samples = {
            name: model.encoder.sample(_prompt(fact), fact.answer) for name, fact in facts.items()
        }
        if known is None or not set(known) <= set(facts):
            answers = read(model, list(samples.values()))
            known = [n for n, a in zip(samples, answers, strict=True) if exact_match.score(a)]
        self.known = list(known)
        self._facts = {name: facts[name] for name in self.known}
        self._samples = {name: samples[name] for name in self.known}
        self._texts = text_samples(model, sentences()[:_SENTENCES])

    def apart_from(self, edits: Iterable[Edit]) -> list[str]:
        """The known facts that no edit is about: none of its prompts names subject or answer."""
        said = "\n".join(edit.prompt for edit in edits)
        return [
            name
            for name, fact in self._facts.items()
            if not occurrences(said, fact.subject) and not occurrences(said, fact.answer)
        ]

    def cost(self, model: EditableModel, names: Sequence[str]) -> Cost:
        """How many of these facts a model answers, on its current weights."""
        answers = read(model, self.samples(names))
        return Cost(
            kept=sum(bool(exact_match.score(answer)) for answer in answers),
            known=len(names),
            perplexity=perplexity(model, self._texts),
        )

    def samples(self, names: Sequence[str]) -> list[Sample]:
        """The questions for these facts."""
        return [self._samples[name] for name in names]

    def statements(self, names: Sequence[str]) -> list[Locality]:
        """These facts as unrelated prompts."""
        facts = [self._facts[name] for name in names]
        return [Locality(prompt=_prompt(fact), answer=fact.answer) for fact in facts]

    def lost(self, model: EditableModel, names: Sequence[str]) -> list[Edit]:
        """Those that a model does not answer any more, as edits that would write them again."""
        answers: list[Reading] = read(model, self.samples(names))
        return self.edits(
            [n for n, a in zip(names, answers, strict=True) if not exact_match.score(a)]
        )

    def edits(self, names: Sequence[str]) -> list[Edit]:
        """These facts as edits to their true answers."""
        return [
            Edit(
                edit_id=name,
                prompt=item.prompt,
                target=item.answer,
                subject=self._facts[name].subject,
                source=f"known fact: {name}",
            )
            for name, item in zip(names, self.statements(names), strict=True)
        ]


def _prompt(fact: RealFact) -> str:
    return put(RELATIONS[fact.relation].statements[0], fact.named)


@lru_cache(maxsize=2)
def asked_facts(pool: Pool) -> tuple[RealFact, ...]:
    """The facts of a pool that a model is asked for, a fair sample drawn once."""
    split = _POOLS[pool]
    facts = list(RealFacts().pool(split, probes=True))  # type: ignore[arg-type]
    random.Random(f"editing/{pool}").shuffle(facts)
    return tuple(facts[: ASKED[pool]])
