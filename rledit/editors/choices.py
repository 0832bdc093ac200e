"""Settings that are one of a few words: a misspelt one is refused, and not taken for the other."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rledit.step_size import SettingError


def check_choices(config: object) -> None:
    """Refuse values that are none of the choices of their setting.

    A grid's are refused with their place in the file before; who makes a configuration by hand has
    this.

    Args:
        config: A dataclass; what it annotates with `Literal`, or with `Literal | None`, counts.

    Raises:
        SettingError: Says which setting, what it may be, and what it is.
    """
    cls: Any = type(config)
    for name, choices in _choices(cls).items():
        value = getattr(config, name)
        if value is not None and value not in choices:  # None stands for the recipe's
            *others, last = map(str, choices)
            expected = f"{', '.join(others)} or {last}" if others else last
            raise SettingError(name, f"expected {expected}, not {value!r}")


@cache
def _choices(cls: type) -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(cls)
    found = {field.name: _literals(hints[field.name]) for field in fields(cls)}
    return {name: choices for name, choices in found.items() if choices}


def _literals(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, optional or not; none of other annotations."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is Literal:
        return get_args(hint)
    if len(kinds) == 1 and get_origin(kinds[0]) is Literal:
        return get_args(kinds[0])
    return ()
