"""Modules that stand in for parts of a model that need not run in a pass."""

from __future__ import annotations

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


class Emit(nn.Module):
    """Stands in for a decoder layer: passes its input on, or gives the hidden states it holds."""

    def __init__(self, as_tuple: bool, hidden: Tensor | None = None) -> None:
        super().__init__()
        self._as_tuple = as_tuple
        self._hidden = hidden

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        hidden = hidden_states if self._hidden is None else self._hidden
        return (hidden, None) if self._as_tuple else hidden
