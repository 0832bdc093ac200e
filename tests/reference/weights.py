"""The edited weights, written in place and put back, as whole matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Matrices = Mapping[str, Tensor]
"""Module → a matrix of its weight's shape (d_out, d_in)."""


class ReferenceWeights:
    """The weights of the edited modules; they require gradients, all others do not.

    Args:
        model: A Hugging Face causal language model; it is edited in place.
        modules: Full names of the edited ``nn.Linear`` modules.

    Attributes:
        current: Module → its weight.
        original: Module → a copy of W_0.
    """

    def __init__(self, model: nn.Module, modules: Sequence[str]) -> None:
        model.requires_grad_(False)
        self.current: dict[str, Tensor] = {}
        for name in modules:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            self.current[name] = weight.requires_grad_(True)
        self.original = self.copies()

    def copies(self) -> dict[str, Tensor]:
        """Copies of the weights as they are."""
        return {name: weight.detach().clone() for name, weight in self.current.items()}

    @torch.no_grad()
    def add(self, deltas: Matrices) -> None:
        """W += ΔW."""
        for name, delta in deltas.items():
            self.current[name].add_(delta)

    @torch.no_grad()
    def write(self, values: Matrices) -> None:
        """W = value."""
        for name, value in values.items():
            self.current[name].copy_(value)

    @contextmanager
    def edited(self, deltas: Matrices, previous: Matrices) -> Iterator[None]:
        """W + ΔW in place inside the context, `previous` written back on the way out."""
        self.add(deltas)
        try:
            yield
        finally:
            self.write(previous)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """W_0 inside the context."""
        present = {name: weight.data for name, weight in self.current.items()}
        for name, weight in self.current.items():
            weight.data = self.original[name]
        try:
            yield
        finally:
            for name, weight in self.current.items():
                weight.data = present[name]
