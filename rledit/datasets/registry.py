"""The formats of editing data, and how a row tells which one it has."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache

from rledit.datasets import (
    akew,
    counterfact,
    fever,
    hallueditbench,
    knowedit,
    mquake,
    plain,
    qaedit,
    ripple_edits,
    ultraeditbench,
    unke,
    wikibigedit,
    zsre,
)
from rledit.datasets.errors import DatasetError, RowError
from rledit.datasets.fields import Row
from rledit.datasets.format import Format, has_mark
from rledit.datasets.values import mismatch, shown_key

_SHOWN_KEYS = 12

# The order matters where a row has the keys of two: the first one is taken.
FORMATS: dict[str, Format] = {
    "zsre_mend": zsre.MEND,
    "zsre_malmen": zsre.MALMEN,
    "zsre_rome": zsre.ROME,
    # Before the schemas whose keys its files have, too.
    "akew": akew.UNSTRUCTURED,
    "akew_structured": akew.STRUCTURED,
    "akew_extracted": akew.EXTRACTED,
    "counterfact": counterfact.ORIGINAL,
    "counterfact_flat": counterfact.FLAT,
    "fever": fever.FEVER,
    "wikibigedit": wikibigedit.WIKIBIGEDIT,
    "ultraeditbench": ultraeditbench.ULTRAEDITBENCH,
    "mquake_remastered": mquake.REMASTERED,
    "mquake": mquake.MQUAKE,
    "knowedit": knowedit.KNOWEDIT,
    "knowedit_wikibio": knowedit.WIKIBIO,
    "qaedit": qaedit.QAEDIT,
    "ripple_edits": ripple_edits.RIPPLE_EDITS,
    "hallueditbench": hallueditbench.HALLUEDITBENCH,
    "unke": unke.UNKE,
    # Last: rows of others have its keys, too.
    "facts": plain.FACTS,
}


_MARKS = tuple({mark for form in FORMATS.values() for mark in form.marks})


def get_format(name: str) -> Format:
    """The format of that name.

    Raises:
        DatasetError: There is none; the message names the nearest.
    """
    if name in FORMATS:
        return FORMATS[name]
    near = get_close_matches(name, FORMATS, n=3) or list(FORMATS)
    raise DatasetError(f"no dataset format is called {name!r}; nearest: {', '.join(near)}")


def accepted_schemas() -> str:
    """Every format that is detected, with its keys, one a line."""
    lines = (f"  {form.schema}" for form in FORMATS.values() if form.detected)
    return "\n".join(("accepted schemas:", *lines))


def match_format(row: object) -> Format | None:
    """The format whose required keys the row has, under whatever name, or None."""
    if not isinstance(row, Mapping):
        return None
    marks = (mark for mark in _MARKS if has_mark(row, mark))
    return _match(frozenset((*map(str, row), *marks)))


@lru_cache(maxsize=256)
def _match(keys: frozenset[str]) -> Format | None:
    """By the schemas' own names first, then by the others that their keys have."""
    others = [form for form in FORMATS.values() if form.detected and form is not plain.FACTS]
    for literal in (True, False):
        for form in others:
            if not form.missing(keys, literal):
                return form
        if not plain.FACTS.missing(keys, literal) and (not literal or keys & plain.OWN):
            return plain.FACTS
    return None


def detect_format(row: object, *, file: str = "row", row_number: int = 1) -> Format:
    """The format whose required keys the row has.

    Args:
        row: One parsed row.
        file: Name of its file, for the message.
        row_number: Its number there, from 1.

    Raises:
        RowError: No format fits. The message names the nearest one and the keys the row lacks for
            it, and `RowError.accepted` lists all schemas.
    """
    if not isinstance(row, Mapping):
        reason = f"the row {mismatch(row, 'an object')}"
        raise RowError(file, row_number, reason, (), accepted_schemas())
    found = match_format(row)
    if found is not None:
        return found
    known = [form for form in FORMATS.values() if form.detected]
    nearest = max(known, key=lambda form: _likeness(form, row))
    missing = nearest.missing(row)
    keys = ", ".join(f"`{key}`" for key in missing)
    reason = f"fits no schema; the nearest is {nearest.name}, for which it lacks {keys}"
    if row:
        has = ", ".join(f"`{shown_key(key)}`" for key in [*row][:_SHOWN_KEYS])
        reason += f" (it has {has}{', …' if len(row) > _SHOWN_KEYS else ''})"
    raise RowError(file, row_number, reason, missing, accepted_schemas())


def _likeness(form: Format, row: Row) -> tuple[float, int]:
    """Share of the required keys that are there; then how much of its example the row has."""
    present = 1 - len(form.missing(row)) / (len(form.required) + len(form.marks))
    return present, len(set(form.example) & set(row))
