"""A benchmark's result as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def lines(result: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """The result's figures, nested keys indented and equal-keyed mappings as tables."""
    pad = "  " * indent
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield f"{pad}{key}"
            yield from _table(value, pad) if _tabular(value) else lines(value, indent + 1)
        elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            yield f"{pad}{key}"
            yield from _table({str(i): row for i, row in enumerate(value)}, pad)
        else:
            yield f"{pad}{key:<24} {_text(value)}"


def _tabular(rows: Mapping[str, Any]) -> bool:
    """Whether the values are flat mappings with the same keys."""
    values = list(rows.values())
    return (
        len(values) > 1
        and all(isinstance(v, Mapping) and v for v in values)
        and len({tuple(v) for v in values}) == 1
        and not any(isinstance(x, Mapping | list) for v in values for x in v.values())
    )


def _table(rows: Mapping[str, Mapping[str, Any]], pad: str) -> Iterator[str]:
    columns = list(next(iter(rows.values())))
    cells = [["", *columns]]
    cells += [[str(name), *(_text(row[c]) for c in columns)] for name, row in rows.items()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        yield pad + "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(_text(v) for v in value)
    return str(value)
