"""Time steps of edits: where a row or a file's name says them, and in which order they come.

A row says its own under one of `KEYS`; a file's name says it for all of its rows where it holds an
interval of two days, as WikiBigEdit's ``wiki_big_edit_20240201_20240220.json`` do. Times are kept
as the data writes them, those of Parquet's own type for dates as ISO 8601 has them. They are
compared where an order by time is asked for: as numbers where all of them are numbers, else as
dates, which have the year first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import PurePosixPath
from typing import Any

from rledit.datasets.values import RowObject
from rledit.records import Edit

KEYS = ("time_step", "timestep", "time", "timestamp", "date")

_INTERVAL = re.compile(r"(?<!\d)(\d{8})[_-](\d{8})(?!\d)")
_DATE = re.compile(
    r"\+?(?P<year>\d{4})"
    r"(?:[-/.](?P<m>\d{1,2})(?:[-/.](?P<d>\d{1,2}))?|(?P<mm>\d{2})(?P<dd>\d{2})?)?"
    r"(?:[Tt _](?P<rest>.*))?",
    re.DOTALL,
)
_SHORT_HOUR = re.compile(r"(?<!\d)\d(?=:)")


def time_of_file(path: str) -> str | None:
    """The interval in a file's name, ``20240201_20240220``; None where it has none."""
    found = _INTERVAL.search(PurePosixPath(path).name)
    if found is None or not all(map(_is_day, found.groups())) or found[1] > found[2]:
        return None
    return f"{found[1]}_{found[2]}"


def _is_day(text: str) -> bool:
    try:
        date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return True


def dated(edits: Iterable[Edit], row: Mapping[str, Any], of_file: str | None) -> list[Edit]:
    """The edits of a row with its time, where they have none of their own."""
    found = next((text for key in KEYS if (text := _time(row, key)) is not None), of_file)
    return [edit if found is None or edit.time else replace(edit, time=found) for edit in edits]


def _time(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    if isinstance(value, date):  # of Parquet or a data frame, with or without a time of day
        value = value.isoformat()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    if _number(text) is None and _moment(text) is None:
        return None
    if isinstance(row, RowObject):
        row.read.add(key)
    return text


def in_order(edits: Sequence[Edit]) -> tuple[list[Edit], list[Edit]]:
    """Edits in the order of time, those of one time as they stand; and those without a usable one.

    Edits whose time is missing, or neither a number nor a date, stand in neither order.
    """
    numbers = [_number(edit.time) for edit in edits]
    keys: Sequence[Any] = numbers
    if any(number is None for number, edit in zip(numbers, edits, strict=True) if edit.time):
        keys = [_moment(edit.time) for edit in edits]
    known = [i for i, key in enumerate(keys) if key is not None]
    unknown = [edit for edit, key in zip(edits, keys, strict=True) if key is None]
    return [edits[i] for i in sorted(known, key=lambda i: keys[i])], unknown


def _number(text: str | None) -> float | None:
    try:
        found = float(text or "")
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _moment(text: str | None) -> tuple[int, int, int, str] | None:
    """Year, month and day (0 where they are not said), and what stands behind them."""
    found = _DATE.fullmatch((text or "").strip())
    if found is None:
        return None
    month, day = found["m"] or found["mm"], found["d"] or found["dd"]
    if (month and not 1 <= int(month) <= 12) or (day and not 1 <= int(day) <= 31):
        return None
    rest = _SHORT_HOUR.sub(r"0\g<0>", found["rest"] or "")
    return int(found["year"]), int(month or 0), int(day or 0), rest


def steps(edits: Sequence[Edit]) -> list[str]:
    """The distinct times of edits in their order; those that have no place in it come last."""
    found, others = in_order(edits)
    return list(dict.fromkeys(edit.time for edit in (*found, *others) if edit.time))
