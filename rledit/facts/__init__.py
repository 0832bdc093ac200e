"""Real facts that the package ships: countries, cities and elements, and who knows them.

>>> source = RealFacts().knowing(known_facts(model, RealFacts().to_ask()))
>>> edits = source.draw("evaluation", 200, seed=0)

Where they come from and under which licences says ``SOURCES.md`` beside this file.
"""

from rledit.facts.knowledge import known_facts, known_parts
from rledit.facts.relations import ASKED, RELATIONS, Relation
from rledit.facts.sentences import sentences
from rledit.facts.source import FEWEST_KNOWN, Known, RealFacts, known_counts, untrue
from rledit.facts.table import RealFact, real_facts, table_hash

__all__ = [
    "ASKED",
    "FEWEST_KNOWN",
    "RELATIONS",
    "Known",
    "RealFact",
    "RealFacts",
    "Relation",
    "known_counts",
    "known_facts",
    "known_parts",
    "real_facts",
    "sentences",
    "table_hash",
    "untrue",
]
