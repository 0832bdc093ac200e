"""Which figures of a column are the best and the second, among those that may be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

from pipeline.results.sheets import SheetCell


def ranked(
    cells: Sequence[SheetCell], bases: Sequence[Hashable | None], *, least: bool = False
) -> list[SheetCell]:
    """The cells with the best and the second marked, as they are shown: equal figures share a mark.

    Only figures of the most frequent basis compete, and a figure alone is not ranked.

    Args:
        bases: What each figure was measured on; None: it does not compete.
        least: Whether the least is the best.
    """
    own = competing([None if c.value is None else b for c, b in zip(cells, bases, strict=True)])
    if len(own) < 2:
        return list(cells)
    shown = {i: float(f"{cells[i].value:{cells[i].form}}") for i in own}
    order = sorted(set(shown.values()), reverse=not least)
    best = [i for i in own if shown[i] == order[0]]
    # Two that are best leave no second.
    second = [i for i in own if len(best) == 1 and shown[i] == order[1]]
    return [replace(cell, best=i in best, second=i in second) for i, cell in enumerate(cells)]


def competing(bases: Sequence[Hashable | None]) -> list[int]:
    """The places of the most frequent basis; None is none."""
    often = Counter(basis for basis in bases if basis is not None).most_common(1)
    return [i for i, basis in enumerate(bases) if often and basis == often[0][0]]
