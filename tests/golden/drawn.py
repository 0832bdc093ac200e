"""Weights of a recording's tiny random models, drawn again from their seeds.

A random model of a recorded set is a stream of normal numbers, scaled tensor by tensor. A set that
lists the draws needs no file of weights. An entry of a manifest says how, under ``drawn``:

- ``seed``: of torch's CPU generator;
- ``draws``: in order, ``[name, shape, gain, fan, mean]``: the tensor is ``z · gain / √fan + mean``
  of standard normal ``z``; a draw without a name is passed over;
- ``sums``: name → [sum, norm] of the recorded tensor in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Another CPU path of the same generator rounds the last bit otherwise; another stream is far off.
AGREEMENT = 1e-5


def drawn(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a ``drawn`` entry by name, float32."""
    generator = torch.Generator().manual_seed(entry["seed"])
    found: dict[str, Tensor] = {}
    for name, shape, gain, fan, mean in entry["draws"]:
        values = torch.randn(shape, generator=generator)
        if name is not None:
            found[name] = values * gain / math.sqrt(fan) + mean
    return found


def sums(tensor: Tensor) -> list[float]:
    """Sum and norm of a tensor in float64."""
    values = tensor.double()
    return [float(values.sum()), float(values.norm())]


def departures(entry: Mapping[str, Any]) -> Iterator[str]:
    """Tensors that this machine draws otherwise than they were recorded."""
    for name, tensor in drawn(entry).items():
        found, recorded = sums(tensor), entry["sums"].get(name)
        if recorded is None:
            yield f"{name}: drawn, without a recorded sum"
        elif any(
            abs(a - b) > AGREEMENT * recorded[1] for a, b in zip(found, recorded, strict=True)
        ):
            yield (
                f"{name}: torch {torch.__version__} draws other numbers from seed "
                f"{entry['seed']} than the recorded model has"
            )
