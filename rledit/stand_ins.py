"""Hooks and stand-ins for parts of a model, for the length of a pass."""

from __future__ import annotations

from collections.abc import Iterator
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
    """Put a module in the place of another for the length of the context.

    The other one is a part of it, unused: what looks for a layer's matrices meanwhile, as a sharded
    model does to gather and release them, finds all of them.
    """
    owner_path, _, name = path.rpartition(".")
    owner = parent.get_submodule(owner_path) if owner_path else parent
    whole: nn.Module = getattr(owner, name)
    stand_in.add_module("whole", whole)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, whole)
