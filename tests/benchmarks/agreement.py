"""Whether a device gives what the CPU gives: the same stream, edited and scored on both."""

from __future__ import annotations

from typing import Any

import torch

from rledit.editors.untrained import Untrained, UntrainedConfig
from rledit.model import EditableModel
from tests.benchmarks.models import ModelShape, build, random_batches

SHAPE = ModelShape(
    family="llama", hidden=256, inner=704, layers=6, heads=4, kv_heads=2, vocabulary=2_000
)
MODULES = ("up:3-5", "down:3-5")
_BATCHES, _EDITS = 5, 20
FLOAT32_TOLERANCE = 1e-3
"""What the norm of the difference of float32 edits may be, over the norm of the edits."""
ROUNDINGS = 1.5
"""How often what bfloat16 rounds the edits of two devices may differ by in it."""


def device_agreement(device: torch.device) -> dict[str, Any]:
    """A stream of five batches on the CPU and on a device, in float32 and in bfloat16.

    Returns:
        By type of the weights: norm of the difference of the edits over that of the CPU's own
        (`shift`), what it may be at most (`tolerance`), and whether it is less (`within`: 1 or 0);
        and the same norm of the CPU's bfloat16 edits and its float32 ones (`rounding`): in bfloat16
        the devices may differ by about as much as rounding does.
    """
    found: dict[str, Any] = {}
    shifts = {}
    for dtype in (torch.float32, torch.bfloat16):
        on_cpu, there = (_edited(torch.device(name), dtype) for name in ("cpu", device))
        shifts[dtype] = on_cpu
        found[str(dtype)] = {"shift": _distance(there, on_cpu)}
    rounding = _distance(shifts[torch.bfloat16], shifts[torch.float32])
    for name, tolerance in (
        (str(torch.float32), FLOAT32_TOLERANCE),
        (str(torch.bfloat16), ROUNDINGS * rounding),
    ):
        found[name] |= {"tolerance": tolerance, "within": int(found[name]["shift"] <= tolerance)}
    return found | {"rounding": rounding}


def _edited(device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    # Made on the CPU: a device draws other numbers from the same seed.
    model = build(SHAPE, dtype=dtype).to(device)
    editable = EditableModel(model, None, MODULES)
    editor = Untrained(editable, UntrainedConfig(modules=editable.modules, initial_step=1e-2))
    before = {name: editable.weights.read(name).float().cpu().clone() for name in editable.modules}
    for batch in random_batches(_BATCHES, _EDITS, SHAPE.vocabulary):
        editor.edit(batch)
    after = {name: editable.weights.read(name).float().cpu() for name in editable.modules}
    return {name: after[name] - before[name] for name in before}


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of `other`, over all matrices together."""
    apart = sum(float((one[name] - other[name]).norm()) ** 2 for name in other)
    return float((apart / sum(float(value.norm()) ** 2 for value in other.values())) ** 0.5)
