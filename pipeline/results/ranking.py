"""Which figures of a column are the best and the second, among those that may be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

from pipeline.results.sheets import Cell


def ranked(
    cells: Sequence[Cell], bases: Sequence[Hashable | None], *, least: bool = False
) -> list[Cell]:
    """The cells with the best and the second marked, as they are shown: equal figures share a mark.

    Only figures of the most frequent basis compete, and a figure alone is not ranked.

    Args:
        bases: What each figure was measured on; None: it does not compete.
        least: Whether the least is the best.
    """
    there = [i for i, cell in enumerate(cells) if cell.value is not None and bases[i] is not None]
    often = Counter(bases[i] for i in there).most_common(1)
    competing = [i for i in there if bases[i] == often[0][0]]
    if len(competing) < 2:
        return list(cells)
    shown = {i: float(f"{cells[i].value:{cells[i].form}}") for i in competing}
    order = sorted(set(shown.values()), reverse=not least)
    best = [i for i in competing if shown[i] == order[0]]
    # Two that are best leave no second.
    second = [i for i in competing if len(best) == 1 and shown[i] == order[1]]
    return [replace(cell, best=i in best, second=i in second) for i, cell in enumerate(cells)]
