"""One fact of the synthetic world."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One true statement of the world and the prompts that ask for it.

    Attributes:
        fact_id: Name of the fact, e.g. ``person-12/profession``.
        subject: Name of the subject, one or two tokens.
        relation: Name of the relation.
        answer: The true answer, one or two tokens.
        trained: Prompts the model is trained on.
        held_out: Prompts of the same fact that it never sees.
    """

    fact_id: str
    subject: str
    relation: str
    answer: str
    trained: tuple[str, ...]
    held_out: tuple[str, ...]
