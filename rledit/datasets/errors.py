"""Errors of data files, each with the file, the row and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rledit.errors import UserError

SHOWN_ROWS = 10
"""How many row errors a message lists before it only counts the rest."""


class DatasetError(UserError, ValueError):
    """A data file or row that cannot be used as it is."""


class DataFileError(DatasetError):
    """A file that cannot be opened as rows: missing, truncated, a pointer, not UTF-8, ...

    Attributes:
        file: The path as it was given.
        reason: What is wrong with it.
        remedy: What to do about it.
    """

    def __init__(self, file: str, reason: str, remedy: str) -> None:
        # All arguments go to the base class: workers send exceptions to the driver by pickle,
        # which rebuilds them from `args`.
        super().__init__(file, reason, remedy)
        self.file, self.reason, self.remedy = file, reason, remedy

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}. {self.remedy}."


class RowError(DatasetError):
    """A row that no reader can map to an edit.

    Attributes:
        file: The path as it was given.
        row: Row of a JSON array or line of a JSONL file, counted from 1.
        reason: What is wrong, naming the key by its path (``locality[2].loc``).
        missing: The required keys that the row lacks.
        accepted: The accepted schemas with their keys, as text; empty if not relevant.
    """

    def __init__(
        self,
        file: str,
        row: int,
        reason: str,
        missing: tuple[str, ...] = (),
        accepted: str = "",
    ) -> None:
        super().__init__(file, row, reason, missing, accepted)
        self.file, self.row, self.reason = file, row, reason
        self.missing, self.accepted = missing, accepted

    @property
    def short(self) -> str:
        """The message without the list of accepted schemas."""
        return f"{self.file}, row {self.row}: {self.reason}"

    def __str__(self) -> str:
        return f"{self.short}\n{self.accepted}" if self.accepted else self.short


class RowErrors(DatasetError):
    """All rows of some files that cannot be mapped; the first ten of each are shown.

    Attributes:
        errors: Every row error, file by file and in their order.
    """

    def __init__(self, errors: Sequence[RowError]) -> None:
        super().__init__(tuple(errors))
        self.errors = tuple(errors)

    def lines(self) -> list[str]:
        """The first messages of each file, the count of the rest, and the accepted schemas once."""
        files: dict[str, list[RowError]] = {}
        for error in self.errors:
            files.setdefault(error.file, []).append(error)
        shown = []
        for file, errors in files.items():
            shown += [error.short for error in errors[:SHOWN_ROWS]]
            if len(errors) > SHOWN_ROWS:
                of = f" of {file}" if len(files) > 1 else ""
                shown.append(f"... and {len(errors) - SHOWN_ROWS} more rows like these{of}")
        accepted = list(dict.fromkeys(e.accepted for e in self.errors if e.accepted))
        return shown + accepted

    def __str__(self) -> str:
        files = ", ".join(dict.fromkeys(error.file for error in self.errors))
        count = f"{len(self.errors):,} rows of {files} cannot be mapped:\n"
        return (count if len(self.errors) > 1 else "") + "\n".join(self.lines())


@dataclass(frozen=True, kw_only=True)
class RowIssue:
    """Something odd in a row that was skipped or repaired, but did not stop the reading.

    Attributes:
        file: The path as it was given.
        row: Row or line, counted from 1.
        trap: Name of the trap (a key of `rledit.datasets.audit.TRAPS`).
        reason: What was found and what was done about it.
    """

    file: str
    row: int
    trap: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"
