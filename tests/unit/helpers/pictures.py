"""The words of a figure."""

from __future__ import annotations

from xml.etree import ElementTree


def texts(svg: bytes) -> list[str]:
    """The text of a picture, which stays text; the picture is whole, or this fails."""
    root = ElementTree.fromstring(svg)
    found = root.iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()).strip() for element in found]
