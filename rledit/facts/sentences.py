"""True sentences of the real facts, as running text: what key covariance can be summed over.

They are made from the train pool alone, from the facts that are edited there and from those that
probe locality: no validation or evaluation stream edits, asks or scores one of them.
"""

from __future__ import annotations

import random
from functools import lru_cache

from rledit.facts.relations import RELATIONS, put
from rledit.facts.source import RealFacts


@lru_cache(maxsize=1)
def sentences() -> tuple[str, ...]:
    """Every fact of the train pool in every phrasing, each with its true answer and a full stop.

    In an order drawn once, so that the first n of them are a fair sample of relations and
    phrasings.
    """
    facts = [fact for probes in (False, True) for fact in RealFacts().pool("train", probes)]
    found = [
        f"{put(phrasing, fact.named)} {fact.answer}."
        for fact in facts
        for phrasing in RELATIONS[fact.relation].phrasings
    ]
    random.Random("facts/sentences").shuffle(found)
    return tuple(found)
