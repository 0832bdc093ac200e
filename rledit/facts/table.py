"""The table of real facts that the package ships, as records."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

TABLE_FILE = "facts.csv"
LICENCES_FILE = "LICENCES.txt"
COLUMNS = ("relation", "subject", "answer", "group", "article", "also")


@dataclass(frozen=True, kw_only=True)
class RealFact:
    """One fact of the table.

    Attributes:
        relation: What is asked of the subject, a name in `rledit.facts.relations.RELATIONS`.
        subject: The subject, without an article.
        answer: The true answer.
        group: Subjects of one group stay together: a country and its capital, whose facts say the
            same the other way round.
        article: What stands before the subject in a sentence, e.g. ``the``; mostly nothing.
        also: Other answers that are true or may be taken for true; no edit writes one of them.
    """

    relation: str
    subject: str
    answer: str
    group: str
    article: str = ""
    also: tuple[str, ...] = ()

    @property
    def fact_id(self) -> str:
        """Its name, ``relation/subject``."""
        return f"{self.relation}/{self.subject}"

    @property
    def named(self) -> str:
        """The subject as it stands in a sentence."""
        return f"{self.article} {self.subject}".lstrip()


@lru_cache(maxsize=1)
def real_facts() -> tuple[RealFact, ...]:
    """All facts, in the order of the table."""
    rows = csv.DictReader(_content().decode().splitlines())
    return tuple(
        RealFact(
            relation=row["relation"],
            subject=row["subject"],
            answer=row["answer"],
            group=row["group"],
            article=row["article"],
            also=tuple(row["also"].split("|")) if row["also"] else (),
        )
        for row in rows
    )


def table_hash() -> str:
    """sha256 of the table's file."""
    return hashlib.sha256(_content()).hexdigest()


def _content() -> bytes:
    return resources.files("rledit.facts").joinpath(TABLE_FILE).read_bytes()
