"""Shifts added inside the forward, which merged and traced ones are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from rledit.model import EditableModel
from rledit.shift import LowRankShift, Shifts


@contextmanager
def injected(model: EditableModel, shifts: Shifts) -> Iterator[None]:
    """Apply shifts inside the forward, ``y += (x Leftᵀ) Right``, without touching a weight."""

    def inject(shift: LowRankShift) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0]
            inner = x if shift.left is None else x @ shift.left.to(x.dtype).T
            return output + inner @ shift.right.to(x.dtype)

        return hook

    with ExitStack() as stack:
        for name, shift in shifts.items():
            handle = model.linear(name).register_forward_hook(inject(shift))
            stack.callback(handle.remove)
        yield
