"""Read a data file into edits: find its format, map each row, report what was skipped."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rledit.datasets.errors import RowError, RowErrors, RowIssue
from rledit.datasets.fields import Place
from rledit.datasets.format import Format
from rledit.datasets.probes import half_probes
from rledit.datasets.registry import detect_format, get_format, match_format
from rledit.datasets.rows import RowFile, open_rows, rows_given
from rledit.datasets.times import dated, time_of_file
from rledit.datasets.values import RowObject
from rledit.records import Edit, Locality

logger = logging.getLogger(__name__)

JOINED = " + "
"""What stands between the formats of files that are read as one."""


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """What one file gave.

    Attributes:
        path: Path or URI as it was given.
        format: Name of its format in the registry.
        edits: The usable edits, in file order.
        skipped: Rows (or hops of a row) that hold no edit, each with its reason.
        notes: Oddities that were repaired, or that the mapped edits no longer show.
        data_hash: sha256 of the file's bytes.
        n_rows: Rows of the file.
        unread: Key with content that the format has no use for → rows that have it.
        adapted: What was read though the format's schema has it under another name, or not at all.
    """

    path: str
    format: str
    edits: tuple[Edit, ...]
    skipped: tuple[RowIssue, ...]
    notes: tuple[RowIssue, ...]
    data_hash: str
    n_rows: int
    unread: Mapping[str, int] = field(default_factory=dict)
    adapted: tuple[str, ...] = ()


def read_edits(
    path: str | Path,
    format: str = "auto",
    strict: bool = False,
    *,
    rows: Iterable[Any] | None = None,
    data_hash: str | None = None,
) -> ReadReport:
    """Read every edit of a file.

    Leading and trailing spaces of targets, and trailing ones of prompts, are taken off (the
    tokenizer contract puts one space before a target); each repair is a note.

    Args:
        path: A JSON or JSONL file, or the name of where `rows` come from.
        format: Name of a format, or ``"auto"``: the format that most rows have.
        strict: Refuse blank targets instead of skipping them.
        rows: Rows that the caller has already opened, e.g. from Parquet.
        data_hash: sha256 of their origin's bytes; without it the rows themselves are hashed.

    Raises:
        DataFileError: The file cannot be opened as rows.
        RowErrors: Rows cannot be mapped, or hold a blank target while `strict`.
        DatasetError: No format has that name.
    """
    file = open_rows(path) if rows is None else rows_given(path, rows, data_hash)
    return map_rows(file, format, strict)


def map_rows(file: RowFile, format: str = "auto", strict: bool = False) -> ReadReport:
    """Map rows that are already open; see `read_edits`."""
    form = find_format(file) if format == "auto" else get_format(format)
    edits: list[Edit] = []
    skipped: list[RowIssue] = []
    notes: list[RowIssue] = []
    errors: list[RowError] = []
    unread: Counter[str] = Counter()
    adapted: set[str] = set()
    of_file = time_of_file(file.path)
    for number, row in file.rows:
        place = Place(file=file.path, row=number)
        try:
            opened = form.open_row(row, place)
            found = dated(form.read(opened, place), opened, of_file)
        except RowError as error:
            errors.append(_explained(error, row, form))
            continue
        notes.extend(_observed(form, opened, place))
        unread.update(dict.fromkeys(opened.unread(), 1))
        adapted.update(opened.adaptations())
        for edit in found:
            if edit.target.strip():
                edits.append(_repaired(edit, place, notes))
            else:
                skipped.append(_issue(place, "blank_target", f"blank target of {edit.prompt!r}"))
    if strict:
        errors.extend(RowError(s.file, s.row, f"{s.reason} (strict)") for s in skipped)
    if errors:
        raise RowErrors(sorted(errors, key=lambda error: error.row))
    if skipped:
        rows_shown = ", ".join(str(issue.row) for issue in skipped[:5])
        logger.warning(
            "%s: skipped %d blank targets (rows %s)", file.path, len(skipped), rows_shown
        )
    return ReadReport(
        path=file.path,
        format=form.name,
        edits=tuple(edits),
        skipped=tuple(skipped),
        notes=tuple(notes),
        data_hash=file.data_hash,
        n_rows=len(file.rows),
        unread=dict(unread),
        adapted=tuple(sorted(adapted)),
    )


def joined(reports: Sequence[ReadReport]) -> ReadReport:
    """Several files as one, row behind row in the order in which they are given.

    Every edit's id begins with the number of its file: files count their rows alike.
    """
    if len(reports) == 1:
        return reports[0]
    more = len(reports) - 1
    hashes = "".join(f"{report.data_hash}\n" for report in reports)
    return ReadReport(
        path=f"{reports[0].path} and {more} more file{'s' * (more > 1)}",
        format=JOINED.join(dict.fromkeys(report.format for report in reports)),
        edits=tuple(
            replace(edit, edit_id=f"{i}:{edit.edit_id}")
            for i, report in enumerate(reports, start=1)
            for edit in report.edits
        ),
        skipped=tuple(issue for report in reports for issue in report.skipped),
        notes=tuple(issue for report in reports for issue in report.notes),
        data_hash=hashlib.sha256(hashes.encode()).hexdigest(),
        n_rows=sum(report.n_rows for report in reports),
        unread=dict(sum((Counter(report.unread) for report in reports), Counter())),
        adapted=tuple(sorted({key for report in reports for key in report.adapted})),
    )


def _explained(error: RowError, row: Any, form: Format) -> RowError:
    """The error of a row, with the schema that it has where it is not the file's."""
    other = match_format(row) if error.missing else None
    if other is None or other is form:
        return error
    reason = f"{error.reason}; the row has the keys of {other.name}"
    return RowError(error.file, error.row, reason, error.missing)


def find_format(file: RowFile) -> Format:
    """The format that most rows have (of several, the first); the others must have it too.

    Raises:
        RowErrors: No row fits a schema; there is one error for each row.
    """
    found = Counter(form.name for _, row in file.rows if (form := match_format(row)) is not None)
    if found:
        return get_format(found.most_common(1)[0][0])
    errors: list[RowError] = []
    for number, row in file.rows:
        try:
            detect_format(row, file=file.path, row_number=number)
        except RowError as error:
            errors.append(error)
    raise RowErrors(errors)


def _issue(place: Place, trap: str, reason: str) -> RowIssue:
    return RowIssue(file=place.file, row=place.row, trap=trap, reason=reason)


def _observed(form: Format, row: RowObject, place: Place) -> list[RowIssue]:
    traps = (*form.observe(row), *half_probes(row))
    return [_issue(place, trap, trap.replace("_", " ")) for trap in traps]


def _repaired(edit: Edit, place: Place, notes: list[RowIssue]) -> Edit:
    """The edit without spaces that would double the one space of the tokenizer contract."""
    if edit.target != edit.target.lstrip():
        notes.append(_issue(place, "target_leading_space", f"took the space off {edit.target!r}"))
    if edit.target != edit.target.rstrip():
        notes.append(_issue(place, "target_trailing_space", f"took the space off {edit.target!r}"))
    if edit.prompt != edit.prompt.rstrip():
        notes.append(_issue(place, "prompt_trailing_space", "took the space off the prompt"))
    return replace(
        edit,
        prompt=edit.prompt.rstrip(),
        target=edit.target.strip(),
        rephrases=tuple(rephrase.rstrip() for rephrase in edit.rephrases),
        locality=tuple(
            Locality(prompt=probe.prompt.rstrip(), answer=probe.answer.strip())
            for probe in edit.locality
        ),
        old_target=None if edit.old_target is None else edit.old_target.strip(),
        subject=None if edit.subject is None else edit.subject.strip(),
        consequences=tuple(
            replace(
                item, prompt=item.prompt.rstrip(), answers=tuple(a.strip() for a in item.answers)
            )
            for item in edit.consequences
        ),
    )
