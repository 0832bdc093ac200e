"""Words for what a figure shows, and whether it shows anything: a flat line is a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from pandas import DataFrame

POINTS = 3.0
"""Percentage points within which a score is said to stay as it is."""
SHARE = 0.1
"""Share of its mean within which any other quantity is said to stay as it is."""


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def ranges(rows: DataFrame, x: str, y: str) -> dict[str, tuple[float, float]]:
    """Least and largest mean of a quantity along `x`, by editor; without those that have none."""
    there = rows[rows[y].map(lambda value: value is not None and math.isfinite(value)).astype(bool)]
    found = {}
    for label, own in there.groupby("label"):
        means = own.groupby(x)[y].mean()
        found[str(label)] = (float(means.min()), float(means.max()))
    return found


def moves(low: float, high: float, *, percent: bool) -> bool:
    """Whether a line between these two is more than flat."""
    if percent:
        return high - low > POINTS
    middle = (abs(low) + abs(high)) / 2
    return high - low > SHARE * middle


def flat(found: Mapping[str, tuple[float, float]], *, percent: bool) -> bool:
    """Whether no editor's line says more than a number."""
    return not any(moves(low, high, percent=percent) for low, high in found.values())


def span(found: Mapping[str, tuple[float, float]], form: str = ".3g") -> str:
    """The least and the largest of all values, as one number where they print alike."""
    low = f"{min(low for low, _ in found.values()):{form}}"
    high = f"{max(high for _, high in found.values()):{form}}"
    return low if low == high else f"{low} to {high}"


def extremes(values: Mapping[str, float]) -> tuple[str, str]:
    """The names of the least and of the largest value."""
    return min(values, key=lambda name: values[name]), max(values, key=lambda name: values[name])


def sentences(parts: Iterable[str]) -> str:
    """Sentences that are there, one behind the other."""
    return " ".join(part for part in parts if part)
