"""Lookup by name, with the nearest valid names where there is no such name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from rledit.errors import UserError

T = TypeVar("T")


class UnknownNameError(UserError, ValueError):
    """A name that stands for nothing that can be used; the message says what there is."""


def look_up(registry: Mapping[str, T], name: str, kind: str) -> T:
    """The registry's entry of that name.

    Args:
        registry: Name → entry.
        name: What is asked for.
        kind: What the registry holds, for the message.

    Raises:
        UnknownNameError: There is none; names the nearest and all others.
    """
    if name not in registry:
        raise UnknownNameError(f"unknown {kind} {name!r}{nearest(name, registry)}")
    return registry[name]


def nearest(name: str, valid: Iterable[str]) -> str:
    """``; did you mean 'x'? Valid: x, y``: the end of a message about an unknown name."""
    known = list(valid)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} Valid: {', '.join(known)}"
