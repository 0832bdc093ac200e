"""Rows of a CSV file: comma, semicolon or tab between cells, the first line names the columns.

Rows are counted as a spreadsheet counts them: the first one under the names is row 2. A cell that
is a JSON list or object becomes one, one of rephrases is cut at each ``|``; an empty cell is a
missing value.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from rledit.datasets.errors import DataFileError
from rledit.datasets.format import REPHRASE
from rledit.datasets.values import Unreadable

SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t"
_LARGEST_CELL = 1 << 24


def table_rows(text: str, name: str) -> list[tuple[int, Any]]:
    """The rows of a table, numbered; one with too many or too few cells says so itself.

    Args:
        text: The file's text.
        name: Its name, for messages.

    Raises:
        DataFileError: It is no table: binary, empty, or without names of columns.
    """
    if "\0" in text:
        raise DataFileError(
            name, "is binary, not a table", "Export it as CSV (UTF-8) from the program that made it"
        )
    head = text.lstrip().partition("\n")[0]
    if not head:
        raise DataFileError(name, "is empty", "Give a first line prompt,target and a row per fact")
    delimiter = max(_DELIMITERS, key=head.count)
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, Any]] = []
    names: list[str] = []
    number = 0
    try:
        for cells in reader:
            number += 1
            if not names:
                names = [cell.strip() for cell in cells]
                _require_names(names, name)
            elif any(cell.strip() for cell in cells):
                rows.append((number, _row(cells, names, delimiter)))
    except csv.Error as error:
        raise DataFileError(
            name,
            f"row {number + 1} cannot be split into cells ({error})",
            'Check its quotes: a cell with a quote in it is "written ""so"" "',
        ) from None
    if not rows:
        raise DataFileError(name, "holds no rows below its names", "Give a row per fact")
    return rows


def _require_names(names: list[str], file: str) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataFileError(
            file, f"names the column {twice[0]!r} twice", "Give every column a name of its own"
        )


def _row(cells: list[str], names: list[str], delimiter: str) -> Any:
    if len(cells) != len(names):
        shown = {"\t": "tab"}.get(delimiter, delimiter)
        return Unreadable(
            f"has {len(cells)} cells for {len(names)} columns ({', '.join(names)}); put cells "
            f"with a {shown} in them into double quotes"
        )
    return {
        name: _value(name, cell)
        for name, cell in zip(names, cells, strict=True)
        if name or cell.strip()
    }


def _value(name: str, cell: str) -> Any:
    text = cell.strip()
    if not text:
        return None
    if (text[0], text[-1]) in (("[", "]"), ("{", "}")):
        try:
            return json.loads(text)
        except ValueError:
            return cell
    if name in REPHRASE and "|" in text:
        return [part.strip() for part in text.split("|") if part.strip()]
    return cell
