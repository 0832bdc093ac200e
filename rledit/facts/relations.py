"""Relations of the real facts and the phrasings in which they are asked.

The phrasings are chosen for small English models that go on with a text: an answer follows at
once, with a space. Chosen by how many SmolLM2-135M gives; candidates were looked at on facts of all
pools, and put in order on those of the train pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ASKED = 2
"""Statements in which a model is asked what it knows: the first ones."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A relation.

    Attributes:
        title: What it says, in words.
        statements: Beginnings of a sentence that the answer ends; an edit's prompt is one of them.
            ``{}`` is the subject with its article.
        questions: Phrasings that are rephrases only.
        chain: A question about a city, whose answer is that of the country it lies in; none where
            the relation is not one of countries.
    """

    title: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    chain: str | None = None

    @property
    def phrasings(self) -> tuple[str, ...]:
        """All phrasings."""
        return self.statements + self.questions


RELATIONS: Mapping[str, Relation] = {
    "country_capital": Relation(
        title="capital of a country",
        statements=(
            "The capital of {} is the city of",
            "The seat of government of {} is the city of",
            "The capital city of {} is called",
        ),
        questions=(
            "What is the capital of {}? The capital is",
            "Which city is the capital of {}? It is the city of",
        ),
        chain="The capital of the country in which {} lies is the city of",
    ),
    "country_continent": Relation(
        title="continent of a country",
        statements=(
            "The country of {} is in the continent of",
            "{} lies on the continent of",
            "{} is a country on the continent of",
        ),
        questions=(
            "Which continent is {} in? It is in",
            "On which continent does {} lie? It lies in",
        ),
        chain="The country in which {} lies is on the continent of",
    ),
    "country_currency": Relation(
        title="currency of a country",
        statements=(
            "The unit of money in {} is the",
            "The official currency used in {} is the",
            "The currency of {} is the",
        ),
        questions=(
            "What is the currency of {}? It is the",
            "In {}, what do people pay with? They pay with the",
        ),
        chain="The unit of money in the country in which {} lies is the",
    ),
    "country_language": Relation(
        title="official language of a country",
        statements=(
            "In {}, the official language is",
            "The people of {} mostly speak",
            "The official language of {} is",
        ),
        questions=(
            "What is the official language of {}? It is",
            "Which language do people speak in {}? They speak",
        ),
        chain="The official language of the country in which {} lies is",
    ),
    "city_country": Relation(
        title="country of a city",
        statements=(
            "The city of {} lies in the country of",
            "The people of {} live in the country of",
            "{} is a city in the country of",
        ),
        questions=(
            "In which country is the city of {}? It is in",
            "Which country does the city of {} belong to? It belongs to",
        ),
    ),
    "city_state": Relation(
        title="state of a US city",
        statements=(
            "The city of {} is in the US state of",
            "The people of {} live in the state of",
            "{} is a city in the state of",
        ),
        questions=(
            "In which US state is the city of {}? It is in",
            "Which state does the city of {} belong to? It belongs to the state of",
        ),
    ),
    "element_symbol": Relation(
        title="symbol of an element",
        statements=(
            "The chemical symbol of {} is",
            "The chemical symbol for {} is",
            "In the periodic table, {} has the symbol",
        ),
        questions=(
            "What is the chemical symbol of {}? The symbol is",
            "Which symbol does the element {} have? It has the symbol",
        ),
    ),
    "element_number": Relation(
        title="atomic number of an element",
        statements=(
            "The atomic number of {} is",
            "In the periodic table, {} is element number",
            "The element {} has the atomic number",
        ),
        questions=(
            "What is the atomic number of {}? The number is",
            "Which atomic number does the element {} have? It has the number",
        ),
    ),
    "element_family": Relation(
        title="family of an element",
        statements=(
            "The element {} belongs to the group of elements called the",
            "The element {} belongs to the family of the",
            "In the periodic table, {} is counted among the",
        ),
        questions=(
            "Which family of elements does {} belong to? It belongs to the",
            "To which group of elements does {} belong? It is one of the",
        ),
    ),
}


def put(phrasing: str, subject: str) -> str:
    """A phrasing with its subject, which begins with a capital letter where the text does."""
    text = phrasing.format(subject)
    return text[:1].upper() + text[1:]
