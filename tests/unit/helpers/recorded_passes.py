"""Watches which passes through the layers below the first edited one a test makes."""

from __future__ import annotations

import pytest
from torch import Tensor

from rledit.prefix_passes import PrefixPasses


def shapes_recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the token matrices of all such passes from now on; grows as they are made."""
    shapes: list[tuple[int, ...]] = []
    whole = PrefixPasses._record

    def record(self: PrefixPasses, ids: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(ids.shape))
        return whole(self, ids)

    monkeypatch.setattr(PrefixPasses, "_record", record)
    return shapes
