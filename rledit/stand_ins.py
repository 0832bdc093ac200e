"""Stand-ins for parts of a model that need not run in a pass, and hooks that go with the pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class PassThrough(nn.Module):
    """Stands in for a decoder layer or MLP that need not run."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self._as_tuple = as_tuple

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states, None) if self._as_tuple else hidden_states


class Replay(nn.Module):
    """Stands in for an attention block whose output is known."""

    def __init__(self, output: Tensor, returns: int | None) -> None:
        super().__init__()
        self._output = output
        self._returns = returns

    def forward(self, *_: Any, **__: Any) -> Any:
        if self._returns is None:
            return self._output
        return self._output, *[None] * (self._returns - 1)


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
