"""Parameters of a test that is a matrix: a part of them all day, more before a merge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def by_turns(firsts: Iterable[Any], others: Sequence[Any], long: int = 1) -> list[Any]:
    """All pairs. By turns, each of the first meets one of the others all day; the rest is marked.

    Args:
        firsts: Such as families or editors.
        others: What each of them meets; a tuple is several arguments of the test.
        long: How many more of the others each meets in `make test`; what is left is slow.
    """
    found = []
    for i, first in enumerate(firsts):
        for j, other in enumerate(others):
            turn = (j - i) % len(others)
            marks = () if turn == 0 else pytest.mark.long if turn <= long else pytest.mark.slow
            values = (first, *(other if isinstance(other, tuple) else (other,)))
            found.append(pytest.param(*values, marks=marks, id="-".join(map(str, values))))
    return found


def marked(
    names: Iterable[str], quick: Iterable[str], long: Iterable[str] | None = None
) -> list[Any]:
    """All names: those named first all day, those named second in `make test`, the others slow.

    Args:
        names: All of them, in their order.
        quick: Those of all day.
        long: Those of `make test`; None: all others.
    """
    fast, usual = set(quick), None if long is None else set(long)
    return [
        name
        if name in fast
        else pytest.param(
            name, marks=pytest.mark.long if usual is None or name in usual else pytest.mark.slow
        )
        for name in names
    ]
