"""Plot style of editors: one colour, marker and dash each, the same in all figures of all reports.

Okabe-Ito colours are told apart without colour vision; markers and dashes serve prints in grey.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from matplotlib.lines import Line2D
from pandas import DataFrame

from pipeline.results.tables import EDITOR_ORDER, UNEDITED, editor_label

Look = tuple[str, str]  # colour, marker
Style = Mapping[str, Look]  # editor label -> look

BLUE, SKY, GREEN, OLIVE = "#0072B2", "#56B4E9", "#009E73", "#B8A800"
ORANGE, VERMILION, PINK, PURPLE = "#E69F00", "#D55E00", "#CC79A7", "#7B4FA3"
COLOURS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, OLIVE, PURPLE)
# The same hues, for a dark page.
DARK = dict(zip(COLOURS, ("#4da3e0", "#f08a3c", "#2fc79b", "#e09bc0", "#f2b632", "#86ccf5",
                          "#d8ca2e", "#b48fdb"), strict=True))  # fmt: skip
INK, GREY = "#222222", "#8a8a8a"
# A marker has its dash, so that lines without colour differ too.
_DASHES = {"o": "-", "s": "--", "^": "-", "D": "-", "v": "-.", "P": ":", "X": "--", "*": "-"}
_MARKERS = tuple(_DASHES)
# Methods are rarely all in one grid; those of one kind of method have different colours.
LOOKS: Mapping[str, Look] = {
    UNEDITED: (INK, "_"), "untrained": (GREY, "x"),
    "ultraedit": (BLUE, "o"), "stableedit": (ORANGE, "o"),
    "ft": (VERMILION, "s"), "ft_l": (SKY, "s"), "ft_m": (PURPLE, "s"), "locft": (GREEN, "^"),
    "crispedit": (PINK, "^"),
    "rome": (SKY, "D"), "memit": (PINK, "D"), "prune": (OLIVE, "v"), "rect": (VERMILION, "v"),
    "alphaedit": (ORANGE, "v"), "nas": (BLUE, "^"), "encore": (GREEN, "D"),
    "lyaplock": (SKY, "v"), "betaedit": (VERMILION, "D"), "deltaedit": (PURPLE, "v"),
    "grace": (GREEN, "s"), "wise": (ORANGE, "P"), "memoir": (PURPLE, "D"),
    "mend": (SKY, "P"), "malmen": (OLIVE, "X"), "mend_star": (PINK, "P"),
    "malmen_star": (ORANGE, "X"), "mend_rledit": (BLUE, "P"), "malmen_rledit": (GREEN, "X"),
    "dafnet": (VERMILION, "X"), "instructedit": (PURPLE, "P"),
    "hiedit": (SKY, "*"), "rledit": (PURPLE, "*"),
}  # fmt: skip


def styles(rows: DataFrame) -> dict[str, Look]:
    """Every editor among `rows` with its look, in the order of tables.

    A look depends on the editor's name alone, but for editors and variants beyond those that come
    with the project: where the look that their name gives is taken, they have the next free one.
    A variant has its editor's colour.
    """
    found = sorted(
        set(zip(rows["editor"], rows["variant"], strict=True)), key=lambda e: (_place(e[0]), e)
    )
    chosen = {editor_label(e): LOOKS[e] for e, variant in found if e in LOOKS and not variant}
    taken = set(chosen.values())
    for editor, variant in found:
        label = editor_label(editor, variant)
        if label not in chosen:
            looks = _candidates(editor, variant)
            chosen[label] = next((look for look in looks if look not in taken), _named(label))
            taken.add(chosen[label])
    return {editor_label(*method): chosen[editor_label(*method)] for method in found}


def colour_of_editor(editor: str) -> str:
    """The colour that an editor's name gives it."""
    return (LOOKS.get(editor) or _named(editor))[0]


def _candidates(editor: str, variant: str) -> Iterator[Look]:
    """Looks in the order in which an editor or variant takes them."""
    first, marker = LOOKS.get(editor) or _named(editor)
    colours, markers = _from(COLOURS, first), _from(_MARKERS, marker)
    if first in (INK, GREY):
        colours = (first, *COLOURS)
    # A variant keeps the colour as long as there are markers for it.
    pairs = ((c, m) for c, m in product(colours, markers))
    return pairs if variant else ((c, m) for m, c in product(markers, colours))


def _named(name: str) -> Look:
    """A look that only the name decides."""
    number = zlib.crc32(name.encode())
    return (COLOURS[number % len(COLOURS)], _MARKERS[number // 8 % len(_MARKERS)])


def _from(values: tuple[str, ...], first: str) -> tuple[str, ...]:
    """The values in their order, beginning with one of them."""
    start = values.index(first) if first in values else 0
    return values[start:] + values[:start]


def shown_in(rows: DataFrame, style: Style) -> Style:
    """The part of a style that these rows use, in its order."""
    names = set(rows["label"])
    return {name: value for name, value in style.items() if name in names}


def line_options(colour: str, marker: str) -> dict[str, Any]:
    """How an editor's line is drawn; a reference is a bare line."""
    shown = "" if marker == "_" else marker
    return {"color": colour, "marker": shown, "markersize": 4.5, "linewidth": 1.4,
            "linestyle": _DASHES.get(marker, "-")}  # fmt: skip


def line_handles(style: Style) -> tuple[list[Line2D], list[str]]:
    """Handles and labels of a legend of lines."""
    handles = [Line2D([], [], **line_options(*look)) for look in style.values()]
    return handles, list(style)


def _place(editor: str) -> int:
    return EDITOR_ORDER.index(editor) if editor in EDITOR_ORDER else len(EDITOR_ORDER)
