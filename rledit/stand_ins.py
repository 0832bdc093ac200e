"""Hooks and stand-ins for parts of a model, for the length of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rledit.lazy_torch import nn


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    """Keep a hook for the length of the context."""
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def swapped(parent: nn.Module, path: str, stand_in: nn.Module) -> Iterator[None]:
    """Put a module in the place of another for the length of the context."""
    owner_path, _, name = path.rpartition(".")
    owner = parent.get_submodule(owner_path) if owner_path else parent
    whole: Callable[..., Any] = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, whole)
