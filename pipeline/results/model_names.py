"""Names models in tables, captions and reports; a proxy model is always called a proxy there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

PROXY = "proxy"


def model_name(model: str, scale: str, *, preset: bool = False) -> str:
    """A model's name: ``Llama-3-8B proxy`` for a small model that stands for Llama-3-8B.

    Args:
        model: Its name in the grid.
        scale: Of its results: full, proxy or world.
        preset: Whether it has the settings of a published model. With these a model of the
            synthetic world is a proxy as well.
    """
    proxy = scale == PROXY or (scale == "world" and preset)
    return f"{model} {PROXY}" if proxy else model


def size_of(parameters: int) -> str:
    """Parameters in words: ``0.27 M``, ``135 M``, ``8 B``."""
    unit, letter = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    size = parameters / unit
    return f"{size:.2g} {letter}" if size < 100 else f"{size:.0f} {letter}"


def row_titles(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[str, str]]:
    """Name and title of every model in rows of `runs`, by scale and name in the grid."""
    presets: dict[tuple[str, str], bool] = {}
    sizes: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        key = (row["scale"], row["model"])
        presets[key] = presets.get(key, False) or bool(row.get("preset"))
        if row.get("parameters") is not None:
            sizes.setdefault(key, set()).add(row["parameters"])
    names = {(s, m): model_name(m, s, preset=preset) for (s, m), preset in presets.items()}
    often = Counter(names.values())
    found = {}
    for key, name in names.items():
        own = f"{name} ({key[0]})" if often[name] > 1 else name
        # A proxy is trained for its data set: several of these may ask for several sizes.
        known = " or ".join(dict.fromkeys(size_of(n) for n in sorted(sizes.get(key, ()))))
        found[key] = (own, f"{own}, {known} parameters" if known else own)
    return found
