"""Names in a question that nothing is called, with those that exist: why it found nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches

from pipeline.results.query import Connection, Result, query, quoted
from pipeline.results.tables import UNEDITED, editor_label

_MOST = 20
# Columns that hold names, and a view that has all of each.
_VIEW_OF = {
    "grid": "cells", "editor": "cells", "variant": "cells", "model": "cells", "dataset": "cells",
    "scale": "cells", "status": "cells", "protocol": "runs", "metric": "curves",
    "probe": "answers",
}  # fmt: skip
_TEXT = r"'(?:[^']|'')*'"
_GIVEN = re.compile(
    rf"\b({'|'.join(_VIEW_OF)})\b\"?\s*(?:==?\s*({_TEXT})|IN\s*\(((?:\s*{_TEXT}\s*,?)+)\))", re.I
)
_REMARK = re.compile(rf"({_TEXT})|--[^\n]*|/\*.*?\*/", re.S)


def unknown_names(sql: str, connection: Connection) -> list[str]:
    """What an SQL statement asks for that no row of the lake is called, a line each.

    Looked at are columns of names that are compared with a text by ``=`` or ``IN``; if the
    statement names grids that exist, all else is looked for in them.
    """
    given: dict[str, list[str]] = {}
    for column, one, several in _GIVEN.findall(_REMARK.sub(r"\1", sql)):
        texts = re.findall(_TEXT, one or several)
        given.setdefault(column.lower(), []).extend(t[1:-1].replace("''", "'") for t in texts)
    grids = [name for name in given.get("grid", ()) if name in _known("grid", (), connection)]
    lines = []
    for column, names in given.items():
        known = _known(column, () if column == "grid" else grids, connection)
        lines += [
            unknown_line(column, name, known, grids if column != "grid" else ())
            for name in dict.fromkeys(names)
            if name not in known
        ]
    return lines


def is_empty(answer: Result) -> bool:
    """Whether an answer says nothing: no row, or nothing but NULL and counts of nothing."""
    return all(not value for row in answer.rows for value in row)


def unknown_line(column: str, name: str, known: Collection[str], grids: Sequence[str] = ()) -> str:
    """Says that no `column` has a name, and which names there are."""
    where = f" in {', '.join(grids)}" if grids else ""
    said = f"there is no {column} {name!r}{where}"
    if column == "editor" and name == editor_label(UNEDITED) and UNEDITED in known:
        said += f"; the unedited model's is {UNEDITED!r}"
    elif near := get_close_matches(name, known, n=1):
        said += f"; did you mean {near[0]!r}?"
    names = sorted(known)
    shown = ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" * (len(names) > _MOST))
    return f"{said}{'' if said.endswith('?') else '.'} There are: {shown or 'none yet'}"


def _known(column: str, grids: Sequence[str], connection: Connection) -> set[str]:
    among = f" WHERE grid IN ({', '.join(map(quoted, grids))})" if grids else ""
    rows = query(f"SELECT DISTINCT {column} FROM {_VIEW_OF[column]}{among}", connection).rows
    return {str(value) for (value,) in rows if value is not None}


def filter_names(condition: str) -> Iterator[tuple[str, str, str]]:
    """The kind (tags, params), key and text of each ``=`` in a filter string of MLflow."""
    found = re.findall(
        r"\b(tags?|params?)\s*\.\s*(?:`([^`]+)`|\"([^\"]+)\"|([\w.]+))\s*=\s*(?:'([^']*)'|\"([^\"]*)\")",
        condition,
    )
    for kind, *keys, single, double in found:
        yield kind.rstrip("s") + "s", next(key for key in keys if key), single or double
