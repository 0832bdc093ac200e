"""Breaks a sheet that is too wide into several below each other, along what its columns share.

Widths are characters on a terminal and points on paper: whoever writes a format says what fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.results.sheets import Sheet

Fits = Callable[[Sheet], bool]


def split(sheet: Sheet, fits: Fits) -> list[Sheet]:
    """As few sheets as fit, with the same rows, whose titles say what each is about.

    It is broken at one level of groups (at models, say), where that is enough; else at the
    outermost and again; without groups between columns, of which one is always taken.
    """
    if fits(sheet):
        return [sheet]
    options = [parts for n in range(sheet.depth) if (parts := _packed(sheet, n, fits)) is not None]
    if options:
        # Of equally few parts those that are of one name each read best.
        return min(options, key=lambda parts: (len(parts), sum(p.depth for p in parts)))
    if sheet.depth:
        return [part for one in split_at(sheet, 0) for part in split(one, fits)]
    return packed_columns(sheet, fits)


def split_at(sheet: Sheet, level: int) -> list[Sheet]:
    """One sheet for each name at a level of groups."""
    return [sheet.only(level, [value]) for value in sheet.values(level)]


def packed_columns(sheet: Sheet, fits: Fits) -> list[Sheet]:
    """Sheets of as many columns as fit, one at least."""
    places = [i for i, head in enumerate(sheet.heads) if not head.left]
    packs: list[list[int]] = []
    for place in places:
        if packs and fits(sheet.columns([*packs[-1], place])):
            packs[-1].append(place)
        else:
            packs.append([place])
    return [sheet.columns(pack) for pack in packs]


def _packed(sheet: Sheet, level: int, fits: Fits) -> list[Sheet] | None:
    """Sheets of as many names of a level as fit; None where one alone does not."""
    values: Sequence[str] = sheet.values(level)
    if not all(fits(sheet.only(level, [value])) for value in values):
        return None
    packs: list[list[str]] = []
    for value in values:
        if packs and fits(sheet.only(level, [*packs[-1], value])):
            packs[-1].append(value)
        else:
            packs.append([value])
    return [sheet.only(level, pack) for pack in packs]
