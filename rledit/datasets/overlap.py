"""Overlap of two sets of edits: prompts and rephrases of either among those of the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rledit.records import Edit


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What two sets of edits share, each text counted once.

    Attributes:
        prompts: Prompts edited in both.
        facts: Pairs of prompt and target in both.
        subjects: Subjects in both, where the data gives them.
        second_in_first: Prompts of the second set that are rephrases in the first.
        first_in_second: Prompts of the first set that are rephrases in the second.
        rephrases: Rephrases in both.
    """

    prompts: int
    facts: int
    subjects: int
    second_in_first: int
    first_in_second: int
    rephrases: int

    @property
    def leaks(self) -> bool:
        """Whether one set asks what the other teaches, in whichever words."""
        asked = (self.prompts, self.second_in_first, self.first_in_second, self.rephrases)
        return any(asked)


def overlap(first: Iterable[Edit], second: Iterable[Edit]) -> Overlap:
    """Count what two sets share; which of them trains and which evaluates does not matter."""
    first, second = list(first), list(second)
    return Overlap(
        prompts=len(prompts(first) & prompts(second)),
        facts=len(_facts(first) & _facts(second)),
        subjects=len(_subjects(first) & _subjects(second)),
        second_in_first=len(_rephrases(first) & prompts(second)),
        first_in_second=len(prompts(first) & _rephrases(second)),
        rephrases=len(_rephrases(first) & _rephrases(second)),
    )


def prompts(edits: Iterable[Edit]) -> set[str]:
    """The distinct prompts of a set of edits."""
    return {edit.prompt.strip() for edit in edits}


def _rephrases(edits: Iterable[Edit]) -> set[str]:
    return {rephrase.strip() for edit in edits for rephrase in edit.rephrases}


def _facts(edits: Iterable[Edit]) -> set[tuple[str, str]]:
    return {(edit.prompt.strip(), edit.target.strip()) for edit in edits}


def _subjects(edits: Iterable[Edit]) -> set[str]:
    return {edit.subject.strip() for edit in edits if edit.subject}
