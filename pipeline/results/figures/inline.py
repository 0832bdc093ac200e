"""Cuts a figure into its panels and the entries of its legend, each an SVG of a page's own.

A page lays them out side by side or below each other as its width allows, and its style sheet sets
their colours for light and dark. `rendered` leaves a ``<view>`` with each one's place in a figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from markupsafe import Markup

from pipeline.results.figures.style import COLOURS, INK

PANEL, KEY = "panel", "key"
PIXELS_PER_POINT = 4 / 3  # text of 9 points is as large as the page's small print
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_HEX = re.compile(r"#[0-9a-f]{6}\b")
# What the page's style sheet sets for light and dark.
_VARIABLES = {
    "#000000": "currentColor", INK: "currentColor", "#2b2b2b": "currentColor",
    "#ffffff": "var(--paper)", "#dddddd": "var(--rule)", "#eeeeee": "var(--rule)",
    **{colour.lower(): f"var(--colour-{i})" for i, colour in enumerate(COLOURS)},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A figure in pieces, as markup."""

    keys: tuple[Markup, ...]
    panels: tuple[Markup, ...]


def pieces(svg: bytes, prefix: str) -> Pieces:
    """Panels and legend entries of a figure that `rendered` made.

    Args:
        prefix: Put before every id, so that no two figures of a page share one.
    """
    root = ElementTree.fromstring(svg)
    named = {element.get("id"): element for element in root.iter() if element.get("id")}
    found: dict[str, list[Markup]] = {PANEL: [], KEY: []}
    for number, view in enumerate(root.iter(f"{_SVG}view")):
        name = str(view.get("id"))[: -len("-view")]
        groups = [e for key, e in named.items() if key in (name, f"{name}-text")]
        body = [*_definitions(groups, named), *groups]
        text = "".join(_text(element, f"{prefix}{number}-") for element in body)
        found[name.split("-")[0]].append(_wrapped(text, str(view.get("viewBox"))))
    return Pieces(keys=tuple(found[KEY]), panels=tuple(found[PANEL]))


def _definitions(groups: list[Element], named: dict[str | None, Element]) -> list[Element]:
    """What groups refer to and do not contain, in a `defs` element."""
    inside = {element.get("id") for group in groups for element in group.iter()}
    wanted, open_ = [], list(groups)
    while open_:
        for name in _references(open_.pop()):
            if name in named and name not in inside:
                inside.add(name)
                wanted.append(named[name])
                open_.append(named[name])
    if not wanted:
        return []
    definitions = Element(f"{_SVG}defs")
    definitions.extend(wanted)
    return [definitions]


def _references(element: Element) -> Iterator[str]:
    for inner in element.iter():
        for value in inner.attrib.values():
            yield from _REFERENCE.findall(value)
        link = inner.get(_LINK, "")
        if link.startswith("#"):
            yield link[1:]


def _text(element: Element, prefix: str) -> str:
    """An element as HTML takes it: without namespaces, in variables for colours."""
    text = ElementTree.tostring(element, encoding="unicode")
    text = re.sub(r' xmlns:\w+="[^"]*"', "", text)
    text = re.sub(r"(</?)\w+:", r"\1", text)
    text = re.sub(r"\b\w+:href=", "href=", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    return _HEX.sub(lambda match: _VARIABLES.get(match[0], match[0]), text)


def _wrapped(text: str, box: str) -> Markup:
    width, height = (float(number) * PIXELS_PER_POINT for number in box.split()[2:])
    return Markup(f'<svg viewBox="{box}" width="{width:.0f}" height="{height:.0f}">{text}</svg>')
