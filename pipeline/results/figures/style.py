"""Plot style of editors: one colour and one marker each, the same in all figures of a report.

Okabe-Ito colours are told apart without colour vision; markers and line styles serve print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.lines import Line2D
from pandas import DataFrame

from pipeline.results.tables import EDITOR_ORDER, UNEDITED, editor_label

Style = Mapping[str, tuple[str, str]]  # editor label -> (colour, marker)

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A800", "#7B4FA3")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", ":", "-.")
_REFERENCE = {UNEDITED: ("#222222", "_"), "untrained": ("#8a8a8a", "x")}


def styles(rows: DataFrame) -> dict[str, tuple[str, str]]:
    """Gives every editor among `rows` its colour and marker; the references are grey."""
    found = sorted(
        set(zip(rows["editor"], rows["variant"], strict=True)), key=lambda e: (_place(e[0]), e)
    )
    chosen: dict[str, tuple[str, str]] = {}
    used = 0
    for editor, variant in found:
        if editor in _REFERENCE and not variant:
            chosen[editor_label(editor)] = _REFERENCE[editor]
            continue
        # Past eight editors colours repeat with the next marker, so the pair stays unique.
        marker = _MARKERS[(used + used // len(_COLOURS)) % len(_MARKERS)]
        chosen[editor_label(editor, variant)] = (_COLOURS[used % len(_COLOURS)], marker)
        used += 1
    return chosen


def line_style(colour: str, marker: str) -> str:
    """Past eight editors colours repeat: the second time dashed, then dotted."""
    if colour not in _COLOURS or marker not in _MARKERS:
        return "-"
    turn = (_MARKERS.index(marker) - _COLOURS.index(colour)) % len(_MARKERS)
    return _LINES[turn % len(_LINES)]


def shown_in(rows: DataFrame, style: Style) -> Style:
    """The part of a style that these rows use, in its order."""
    names = set(rows["label"])
    return {name: value for name, value in style.items() if name in names}


def line_options(colour: str, marker: str, markers: bool = True) -> dict[str, Any]:
    """How an editor's line is drawn; a reference is a bare line."""
    shown = marker if markers and marker != "_" else ""
    return {"color": colour, "marker": shown, "markersize": 4, "linewidth": 1.4,
            "linestyle": line_style(colour, marker)}  # fmt: skip


def line_handles(style: Style, markers: bool = True) -> tuple[list[Line2D], list[str]]:
    """Handles and labels of a legend of lines."""
    handles = [Line2D([], [], **line_options(*look, markers)) for look in style.values()]
    return handles, list(style)


def point_handles(style: Style) -> tuple[list[Line2D], list[str]]:
    """Handles and labels of a legend of points."""
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=7, markeredgewidth=1.6,
               linestyle="none")
        for colour, marker in style.values()
    ]  # fmt: skip
    return handles, list(style)


def _place(editor: str) -> int:
    return EDITOR_ORDER.index(editor) if editor in EDITOR_ORDER else len(EDITOR_ORDER)
