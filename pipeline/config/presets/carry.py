"""Carries the settings of a model over to one without published ones, to layers as far along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pipeline.config.presets.settings import OWN, Setting, Settings
from pipeline.config.presets.shape import Shape, layer_numbers

# Counts of a linear's inputs, which belong to its width.
_OF_A_WIDTH = ("k",)


class Known(Protocol):
    """A model with settings: a preset."""

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        ...

    @property
    def settings(self) -> Settings:
        """Its settings."""
        ...


def carried(known: Known, shape: Shape, fused: bool = False) -> dict[str, dict[str, Setting]]:
    """Every setting of a model for another one, all marked as our own.

    Args:
        known: The model that has settings.
        shape: Sizes of the other.
        fused: Whether gate and up are one matrix there, `gate_up`.
    """
    same_width = shape.intermediate == known.shape.intermediate

    def values(setting: Setting) -> dict[str, Any]:
        found = {k: v for k, v in setting.values.items() if same_width or k not in _OF_A_WIDTH}
        modules = found["modules"]
        found["modules"] = carried_modules(modules, known.shape.layers, shape.layers, fused)
        return found

    return {
        editor: {schema: Setting(values=values(one), origin=OWN) for schema, one in each.items()}
        for editor, each in known.settings.items()
    }


def carried_modules(
    modules: tuple[str, ...], depth: int, to: int, fused: bool = False
) -> tuple[str, ...]:
    """Target modules in a stack of another depth: as many layers, as far along it.

    The first layers stay the first, the last ones the last.

    Args:
        modules: Shorthands, e.g. ``gate:11-15``.
        depth: Layers of the model that they are of.
        to: Layers of the other.
        fused: Whether gate and up are one matrix there.
    """
    kinds: Mapping[str, str] = {"gate": "gate_up", "up": "gate_up"} if fused else {}
    layers: dict[str, set[int]] = {}
    for item in modules:
        kind = item.partition(":")[0]
        numbers = layer_numbers(item, depth)
        span = numbers[-1] - numbers[0] + 1
        places, others = depth - span, to - span
        start = round(numbers[0] * others / places) if places else 0
        moved = {start + n - numbers[0] for n in numbers}
        layers.setdefault(kinds.get(kind, kind), set()).update(moved)
    return tuple(f"{kind}:{_written(sorted(found))}" for kind, found in layers.items())


def _written(numbers: list[int]) -> str:
    """Layer numbers as a shorthand has them."""
    if len(numbers) > 1 and numbers[-1] - numbers[0] + 1 == len(numbers):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))
