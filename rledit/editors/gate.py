"""HiEdit's gate: a network that picks the target modules that a batch is written into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rledit.editors.moment_editor import Shape


class _Encoder(nn.Module):
    """Rows [K, V] of the modules of one shape as features: scale_j ⊙ max(A z + a, 0) + shift_j."""

    def __init__(self, d: int, width: int, n_modules: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d, width)
        self.scale = nn.Parameter(torch.ones(n_modules, width))
        self.shift = nn.Parameter(torch.zeros(n_modules, width))

    def forward(self, z: Tensor) -> Tensor:
        """(M, n, d) → (M, width), means over rows."""
        features = self.linear(z).clamp(min=0)
        return (self.scale[:, None] * features + self.shift[:, None]).mean(1)


class Gate(nn.Module):
    """One number per target module; the largest are edited.

    Args:
        shapes: Linear shape → the modules of it.
        order: All modules in the order of the numbers.
        width: Features of a module.
    """

    def __init__(
        self, shapes: Mapping[Shape, Sequence[str]], order: Sequence[str], width: int
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {_key(shape): _Encoder(sum(shape), width, len(n)) for shape, n in shapes.items()}
        )
        self.head = nn.Linear(width * len(order), len(order))
        found = [name for names in shapes.values() for name in names]
        self._places = [found.index(name) for name in order]

    def forward(self, rows: Mapping[Shape, Tensor]) -> Tensor:
        """Logits (modules,) of a batch's normalised rows: shape → (M, n, d)."""
        features = torch.cat([self.encoders[_key(shape)](z) for shape, z in rows.items()])
        logits: Tensor = self.head(features[self._places].flatten())
        return logits


def straight_through(logits: Tensor, k: int) -> Tensor:
    """1 for the k largest logits and exactly 0 for the others; its gradient is the logits'."""
    chosen = logits.argsort(descending=True, stable=True)[:k]
    mask = torch.zeros_like(logits).index_fill(0, chosen, 1.0)
    return mask + (logits - logits.detach())


def _key(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"
