"""How cost grows: with the edits of a stream, with depth of backtracking, width and batch size."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch

from rledit.benchmarks.clock import Clock, ClockKind
from rledit.benchmarks.contenders import Fast, StepSettings
from rledit.benchmarks.machine import memory, reset_peak_memory
from rledit.benchmarks.models import ModelShape, build, random_batches

STREAM_PARTS = 10
_STEPS = 3
_PAGE_GB = 4096e-9


@dataclass(frozen=True, kw_only=True)
class GrowthBenchmark:
    """The streams to run.

    Attributes:
        stream: Model of the long stream.
        stream_edits: Edits of the long stream.
        step: Model of the steps whose depth, width and batch size vary.
        depths, widths, batch_sizes: Values to vary, the others being held.
        rank: Rank of the hypernetwork.
        batch_size: Edits per batch where it is held.
        depth: Backtracking depth where it is held.
        seed: Seed of weights and batches.
    """

    stream: ModelShape
    step: ModelShape
    stream_edits: int = 10_000
    depths: tuple[int, ...] = (1, 2, 5, 10, 20)
    widths: tuple[int, ...] = (128, 256, 512)
    batch_sizes: tuple[int, ...] = (5, 10, 20, 40)
    rank: int = 64
    batch_size: int = 20
    depth: int = 10
    seed: int = 0


def run_growth(setting: GrowthBenchmark, device: torch.device, kind: ClockKind) -> dict[str, Any]:
    """Seconds along each axis; `edit_growth` and `memory_growth` sum up the two that must be flat.

    Returns:
        `edit_growth`: largest departure of a tenth of the stream from the first, as a ratio.
        `edit_growth_end`: cost of the last tenth over the first.
        `memory_growth`: peak memory of a training step (model, editor and caches included) at the
        greatest depth over that at the least; `step_memory_growth`: the same of what the step
        adds to what is held before it.
    """
    clock = Clock(device, kind)
    tenths = _stream(setting, device, clock)
    depths = {d: _step(setting.step, setting, device, clock, depth=d) for d in setting.depths}
    widths = {w: _step(_widened(setting.step, w), setting, device, clock) for w in setting.widths}
    sizes = {
        m: _step(setting.step, setting, device, clock, batch_size=m) for m in setting.batch_sizes
    }
    least, greatest = depths[min(depths)], depths[max(depths)]
    return {
        "edit_growth": max(max(t, tenths[0]) / min(t, tenths[0]) for t in tenths),
        "edit_growth_end": tenths[-1] / tenths[0],
        "memory_growth": greatest["peak_gb"] / least["peak_gb"],
        "step_memory_growth": greatest["step_gb"] / max(least["step_gb"], _PAGE_GB),
        "edit_seconds_by_tenth": tenths,
        "by_depth": depths,
        "by_width": widths,
        "by_batch_size": sizes,
    }


def _modules(shape: ModelShape) -> tuple[str, ...]:
    return (f"down:{shape.layers // 2}-{shape.layers - 1}",)


def _widened(shape: ModelShape, width: int) -> ModelShape:
    scale = width / shape.hidden
    return replace(shape, hidden=width, inner=int(shape.inner * scale))


def _stream(setting: GrowthBenchmark, device: torch.device, clock: Clock) -> list[float]:
    """Median seconds per edit in each tenth of one long stream."""
    shape, size = setting.stream, setting.batch_size
    batches = random_batches(
        setting.stream_edits // size + 1, size, shape.vocabulary, seed=setting.seed
    )
    settings = StepSettings(modules=_modules(shape), rank=setting.rank, depth=1)
    ours = Fast(build(shape, device=device, seed=setting.seed), batches, settings)
    clock(ours.edit(0))
    seconds = [clock(ours.edit(i)) / size for i in range(1, len(batches))]
    length = max(1, len(seconds) // STREAM_PARTS)
    starts = range(0, length * min(STREAM_PARTS, len(seconds)), length)
    return [statistics.median(seconds[s : s + length]) for s in starts]


def _step(
    shape: ModelShape,
    setting: GrowthBenchmark,
    device: torch.device,
    clock: Clock,
    *,
    depth: int | None = None,
    batch_size: int | None = None,
) -> dict[str, float]:
    """Seconds and memory of a training step with a full window."""
    depth, size = depth or setting.depth, batch_size or setting.batch_size
    batches = random_batches(depth + _STEPS + 1, size, shape.vocabulary, seed=setting.seed)
    before, _ = memory(device)
    model = build(shape, device=device, seed=setting.seed)
    settings = StepSettings(modules=_modules(shape), rank=setting.rank, depth=depth)
    ours = Fast(model, batches, settings)
    ours.train(0)()
    seconds = statistics.median(clock(ours.train(1 + i)) for i in range(_STEPS - 1))
    reset_peak_memory(device)
    held, _ = memory(device)
    ours.train(_STEPS)()
    _, peak = memory(device)
    return {
        "train_seconds": seconds,
        "peak_gb": (peak - before) / 1e9,
        "step_gb": (peak - held) / 1e9,
    }
