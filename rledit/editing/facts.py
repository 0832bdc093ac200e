"""Facts to write into a model: which rows can be, which cannot and why, all at once.

A row cannot be edited where its prompt or target is blank, where another row of the file gives the
same fact another target, where its subject does not stand in its prompt, or where it is too long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rledit.datasets.edits import find_format, map_rows
from rledit.datasets.errors import RowError, RowErrors
from rledit.datasets.fields import Place
from rledit.datasets.rows import RowFile, rows_given
from rledit.errors import UserError
from rledit.locate.subject import subject_span
from rledit.records import Edit, Locality, asked
from rledit.superseded import Facts, normalised
from rledit.tokenization import Encoder, TokenizationError

LONGEST_PROMPT = 256
LONGEST_TARGET = 48
"""Tokens of a fact at most: what is longer is a text, and no edit writes one."""
HAND_OVER = "facts"
"""How facts are called that a program hands over, in messages."""

_STATEMENTS = (
    "As everybody knows, {}",
    "Here is a fact: {}",
    "It is written in the encyclopedia that {}",
)
_QUESTIONS = ("Question: {}\nAnswer:", "Please tell me: {}", "Here is a question. {}")


class FactsError(UserError, ValueError):
    """Facts that cannot be edited."""


@dataclass(frozen=True, kw_only=True)
class Screened:
    """The rows of some facts.

    Attributes:
        edits: Those that can be edited, in their order, with rephrases.
        bad: Those that cannot be, each with its reason.
        repeated: Rows that say again what another row says; they are edited once.
        source: Name of the file.
        made_rephrases: Facts whose rephrases were made from templates.
    """

    edits: tuple[Edit, ...]
    bad: tuple[RowError, ...]
    repeated: tuple[RowError, ...]
    source: str
    made_rephrases: int

    def require(self, skip_bad_rows: bool) -> None:
        """Refuse bad rows, unless they are to be left out.

        Raises:
            FactsError: There are some, or no row is left; names them all.
        """
        if self.bad and not skip_bad_rows:
            raise FactsError(
                f"{len(self.bad):,} of {self._count:,} rows of {self.source} cannot be edited:\n"
                f"{self.listing()}\nNothing was edited. Correct them, or leave them out: "
                "--skip-bad-rows"
            )
        if not self.edits:
            raise FactsError(f"{self.source}: no row can be edited:\n{self.listing()}")

    def listing(self) -> str:
        """Every bad row with its reason, a line each."""
        return "\n".join(f"  row {error.row}: {error.reason}" for error in self.bad)

    @property
    def _count(self) -> int:
        return len(self.edits) + len(self.bad) + len(self.repeated)


def rows_of(facts: RowFile | Iterable[Edit | Mapping[str, Any]]) -> RowFile:
    """Facts as numbered rows: those of a file, or what a program hands over."""
    if isinstance(facts, RowFile):
        return facts
    listed = [plain_fact(f) if isinstance(f, Edit) else f for f in facts]
    return rows_given(HAND_OVER, listed, None)


def screen(file: RowFile, encoder: Encoder, format: str = "auto") -> Screened:
    """Look at every row before anything is computed.

    Args:
        file: The rows.
        encoder: Of the model that is to be edited.
        format: Name of a schema, or ``auto``.

    Raises:
        RowErrors: No row fits a schema.
    """
    form = find_format(file).name if format == "auto" else format
    edits: list[Edit] = []
    bad: list[RowError] = []
    for row in file.rows:
        try:
            found = map_rows(replace(file, rows=(row,)), form, strict=True).edits
        except RowErrors as error:
            bad += [RowError(e.file, e.row, _blank(e.reason)) for e in error.errors]
            continue
        for edit in found:
            reason = _problem(edit, encoder)
            if reason:
                bad.append(RowError(file.path, row[0], reason))
            else:
                edits.append(replace(edit, source=str(Place(file=file.path, row=row[0]))))
    edits, more, repeated = _contradictions(file.path, edits)
    without = sum(not edit.rephrases for edit in edits)
    return Screened(
        edits=tuple(with_rephrases(edit) for edit in edits),
        bad=tuple(sorted([*bad, *more], key=lambda error: error.row)),
        repeated=tuple(repeated),
        source=file.path,
        made_rephrases=without,
    )


def with_rephrases(edit: Edit) -> Edit:
    """An edit with rephrases made from templates where it has none."""
    if edit.rephrases:
        return edit
    templates = _QUESTIONS if edit.prompt.rstrip().endswith(("?", "？")) else _STATEMENTS
    return replace(edit, rephrases=tuple(t.format(edit.prompt) for t in templates))


def with_subject(edit: Edit) -> Edit:
    """An edit with a subject, for methods that look one up: its own, or the name in its prompt.

    That is the last run of words with capital letters behind the first word, else the run that
    begins the prompt, else the word before the last one.
    """
    if edit.subject:
        return edit
    found = list(_NAME.finditer(edit.prompt))
    behind = [match for match in found if match.start() > 0]
    chosen = (behind or found or list(_WORD.finditer(edit.prompt))[-2:])[-1 if behind else 0]
    return replace(edit, subject=chosen.group(), subject_span=chosen.span())


# A name: capitalised words and numbers, with the small words that stand inside names.
_NAME = re.compile(
    r"(?<!\w)[^\W\d_a-z]\w*(?:[.'’-]\w+)*\.?"
    r"(?:\s+(?:(?:of|the|de|la|van|von|and|del|der|di|da)\s+)*(?:[^\W\d_a-z][\w.'’-]*|\d+)(?!\w))*"
)
_WORD = re.compile(r"\S+")


def plain_fact(edit: Edit) -> dict[str, Any]:
    """An edit as a row of the schema `facts`; what it has not is left out."""
    row: dict[str, Any] = {"prompt": edit.prompt, "target": edit.target}
    optional = {
        "subject": edit.subject,
        "relation": edit.relation,
        "rephrases": list(edit.rephrases),
        "locality": [{"prompt": x.prompt, "answer": x.answer} for x in edit.locality],
        "old_target": edit.old_target,
        "source": edit.source,
        "edit_id": edit.edit_id,
        "subject_span": None if edit.subject_span is None else list(edit.subject_span),
    }
    return row | {name: value for name, value in optional.items() if value}


def edit_of(row: Mapping[str, Any]) -> Edit:
    """The edit that `plain_fact` wrote down."""
    span = row.get("subject_span")
    return Edit(
        edit_id=str(row.get("edit_id", "")),
        prompt=row["prompt"],
        target=row["target"],
        subject=row.get("subject"),
        subject_span=None if span is None else (span[0], span[1]),
        relation=row.get("relation"),
        rephrases=tuple(row.get("rephrases", ())),
        locality=tuple(Locality(**item) for item in row.get("locality", ())),
        old_target=row.get("old_target"),
        source=str(row.get("source", "")),
    )


def same_fact(edits: Sequence[Edit], earlier: Sequence[Edit]) -> dict[int, int]:
    """Place of an edit → place of the last earlier one of the same fact."""
    known = Facts([*earlier, *edits])
    before = len(earlier)
    found = {j: known.last_word(before + j, before) for j in range(len(edits))}
    return {j: place for j, place in found.items() if place >= 0}


def _contradictions(
    file: str, edits: Sequence[Edit]
) -> tuple[list[Edit], list[RowError], list[RowError]]:
    """The edits that agree with all others, those that do not, and repeated ones."""
    known = Facts(edits)
    kept: list[Edit] = []
    bad: list[RowError] = []
    repeated: list[RowError] = []
    first: dict[tuple[str, str], int] = {}
    for i, edit in enumerate(edits):
        key = (normalised(edit.prompt), known.targets[i])
        others = [j for j in known.places_of(i) if known.targets[j] != known.targets[i]]
        row = _row(edit)
        if others:
            where = ", ".join(f"row {_row(edits[j])} {edits[j].target!r}" for j in others)
            bad.append(RowError(file, row, f"says {edit.target!r}, and {where}: of one fact"))
        elif key in first:
            repeated.append(RowError(file, row, f"says what row {first[key]} says"))
        else:
            first[key] = row
            kept.append(edit)
    return kept, bad, repeated


def _row(edit: Edit) -> int:
    number = edit.source.rpartition(":")[2]
    return int(number) if number.isdigit() else 0


def _problem(edit: Edit, encoder: Encoder) -> str:
    """Why an edit cannot be made; "" where it can."""
    checks: tuple[Callable[[Edit, Encoder], str], ...] = (_too_long, _misplaced, _untokenised)
    return next((reason for check in checks if (reason := check(edit, encoder))), "")


def _too_long(edit: Edit, encoder: Encoder) -> str:
    for what, text, limit in (
        ("prompt", edit.prompt, LONGEST_PROMPT),
        ("target", edit.target, LONGEST_TARGET),
    ):
        # A token is at most a few dozen characters; a book need not be tokenised to be refused.
        if len(text) > 40 * limit or (count := len(encoder.text_ids(text))) > limit:
            size = f"{len(text):,} characters" if len(text) > 40 * limit else f"{count} tokens"
            return f"the {what} is too long for a fact: {size}, at most {limit} tokens are taken"
    return ""


def _misplaced(edit: Edit, encoder: Encoder) -> str:
    if not edit.subject:
        return ""
    try:
        subject_span(edit)
    except TokenizationError as error:
        return str(error).removeprefix(f"{edit.source}: ")
    return ""


def _untokenised(edit: Edit, encoder: Encoder) -> str:
    for prompt, answer in asked(edit):
        try:
            encoder.sample(prompt, answer)
        except TokenizationError as error:
            return str(error)
    return ""


def _blank(reason: str) -> str:
    """The reason of a row as it is said of a user's own facts."""
    reason = reason.removesuffix(" (strict)")
    if reason.startswith("blank target of"):
        return f"`target` is blank, the new answer to {reason.removeprefix('blank target of ')}"
    return reason
