"""ROME's known facts (arXiv 2202.05262, appendix B): prompts a model answers, for causal tracing.

They carry the true answer only, and no new one: they are facts to trace, not edits to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rledit.datasets.errors import RowError, RowErrors
from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.rows import RowFile

REQUIRED = ("known_id", "subject", "attribute", "prompt")


@dataclass(frozen=True, kw_only=True)
class KnownFact:
    """A fact that a model knows.

    Attributes:
        subject: Subject as it occurs in `prompt`.
        prompt: Statement without its last words.
        answer: The words that complete it truthfully.
        source: File and row.
    """

    subject: str
    prompt: str
    answer: str
    source: str


def is_known(row: object) -> bool:
    """Whether a row has the keys of the known facts."""
    return isinstance(row, Mapping) and all(key in row for key in REQUIRED)


def map_known(file: RowFile) -> list[KnownFact]:
    """Map the rows of a file of known facts.

    Raises:
        RowErrors: Rows lack a key, or their prompt does not contain the subject.
    """
    facts, errors = [], []
    for number, row in file.rows:
        try:
            facts.append(_read(row, Place(file=file.path, row=number)))
        except RowError as error:
            errors.append(error)
    if errors:
        raise RowErrors(errors)
    return facts


def _read(row: Row, place: Place) -> KnownFact:
    fields = Fields(row, place)
    subject, prompt = fields.text("subject"), fields.text("prompt")
    if subject not in prompt:
        fields.fail("prompt", f"does not contain the subject {subject!r}")
    answer = fields.text("attribute")
    return KnownFact(subject=subject, prompt=prompt, answer=answer, source=str(place))


def differing_templates(file: RowFile) -> int:
    """Rows whose ``template`` does not give their ``prompt``: the prompt is the one to use."""
    return sum(
        isinstance(template := row.get("template"), str)
        and template.replace("{}", row["subject"]) != row["prompt"]
        for _, row in file.rows
    )
