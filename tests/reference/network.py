"""The hypernetwork on one module's rows, and the differences D that it asks for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.reference.settings import ReferenceConfig

Shape = tuple[int, int]
Parameters = dict[Shape, dict[str, Tensor]]


def reference_parameters(
    shapes: Mapping[Shape, int],
    config: ReferenceConfig,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Parameters:
    """Hypernetwork parameters at their start, where the network is the identity.

    Args:
        shapes: Number of edited modules of each (d_in, d_out).
        config: Gives rank, blocks and initial step.
        generator: CPU source of A's normal numbers.
        dtype: Type of the parameters, and of all of the editor's own arithmetic.
        device: Where they are made.
    """
    parameters: Parameters = {}
    step = 0.0 if config.step_form == "log" else config.initial_step
    for (d_in, d_out), count in shapes.items():
        d = d_in + d_out
        tensors = {
            "step_parameter": torch.full((count,), step),
            "log_ridge": torch.zeros(count),
        }
        for i in range(config.n_blocks):
            tensors[f"blocks.{i}.A"] = torch.randn(d, config.rank, generator=generator)
            tensors[f"blocks.{i}.B"] = torch.zeros(config.rank, d)
            tensors[f"blocks.{i}.bias"] = torch.zeros(d)
            tensors[f"blocks.{i}.scale"] = torch.ones(count, d)
            tensors[f"blocks.{i}.shift"] = torch.zeros(count, d)
        parameters[d_in, d_out] = {k: v.to(device, dtype) for k, v in tensors.items()}
    return parameters


def reference_network(z: Tensor, parameters: Mapping[str, Tensor], index: int) -> Tensor:
    """h ← h + scale_j ⊙ max(h A B + b, 0) + shift_j, block after block, for module `index`.

    The slope of max(·, 0) at 0 is taken as 1: B starts at zero and would never move otherwise.
    """
    h, i = z, 0
    while f"blocks.{i}.A" in parameters:
        name = f"blocks.{i}."
        inner = h @ parameters[name + "A"] @ parameters[name + "B"] + parameters[name + "bias"]
        scale, shift = parameters[name + "scale"][index], parameters[name + "shift"][index]
        h = h + scale * inner.clamp(min=0) + shift
        i += 1
    return h


def differences(keys: Tensor, left: Tensor, right: Tensor, step: Tensor) -> Tensor:
    """D = -η rowsum(K ⊙ K̃) ⊙ Ṽ, (n, d_out), with the raw keys."""
    return -step * (keys * left).sum(1, keepdim=True) * right
