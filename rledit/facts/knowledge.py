"""Which real facts a model knows: it gives their answer behind a statement that begins with them.

A model knows a fact in a phrasing where every token of the answer is its most likely one, each
behind the true ones before it: so greedy decoding writes the answer first. A fact counts as known
where that is so in at least one of the phrasings asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rledit.facts.relations import ASKED, RELATIONS, put
from rledit.facts.source import Known
from rledit.facts.table import RealFact, real_facts
from rledit.model import EditableModel
from rledit.protocols import exact_match
from rledit.protocols.reading import read

PART = 64
"""Facts that are asked together. Parts do not depend on each other, so that an interrupted pass
goes on at any of them with the same result."""


def known_facts(model: EditableModel, facts: Sequence[RealFact] | None = None) -> Known:
    """What a model knows, on its current weights.

    Args:
        model: The model.
        facts: The facts to ask; None: all of the package's.

    Returns:
        For every fact asked, by its id, the places of the statements that it answers.

    Raises:
        TokenizationError: A prompt breaks the token contract of the model.
        NonFiniteError: The model gives no numbers.
    """
    found: dict[str, Sequence[int]] = {}
    for part in known_parts(model, real_facts() if facts is None else facts):
        found |= part
    return found


def known_parts(
    model: EditableModel, facts: Sequence[RealFact], start: int = 0
) -> Iterator[dict[str, list[int]]]:
    """`known_facts` part by part, of `PART` facts each, from a part on."""
    for first in range(start * PART, len(facts), PART):
        part = facts[first : first + PART]
        samples = [
            model.encoder.sample(put(phrasing, fact.named), fact.answer, fact.fact_id)
            for fact in part
            for phrasing in RELATIONS[fact.relation].statements[:ASKED]
        ]
        right = [bool(exact_match.score(reading)) for reading in read(model, samples)]
        yield {
            fact.fact_id: [j for j in range(ASKED) if right[i * ASKED + j]]
            for i, fact in enumerate(part)
        }
