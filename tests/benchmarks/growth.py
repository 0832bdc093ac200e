"""Growth of cost: with the edits of a stream, depth of backtracking, width and batch size."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from rledit.model import Execution
from rledit.tokenization import EditBatch
from tests.benchmarks.clock import Clock, ClockKind, interleave, median_ratio
from tests.benchmarks.contenders import Fast, StepSettings
from tests.benchmarks.machine import memory, reset_peak_memory, return_freed_memory
from tests.benchmarks.models import ModelShape, build, random_batches

STREAM_PARTS = 10
_STEPS = 3
_PAGE_GB = 4096e-9


@dataclass(frozen=True, kw_only=True)
class GrowthBenchmark:
    """The streams to run.

    Attributes:
        stream: Model of the long stream.
        stream_edits: Edits of the long stream.
        stream_cache_bytes: Budget of the stream's prefixes, small enough to be met on the way.
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
    stream_cache_bytes: int = 64 << 20
    depths: tuple[int, ...] = (1, 2, 5, 10, 20)
    widths: tuple[int, ...] = (128, 256, 512)
    batch_sizes: tuple[int, ...] = (5, 10, 20, 40)
    rank: int = 64
    batch_size: int = 20
    depth: int = 10
    seed: int = 0


def run_growth(setting: GrowthBenchmark, device: torch.device, kind: ClockKind) -> dict[str, Any]:
    """Figures along each axis, and what sums up the two that must stay flat.

    Returns:
        `edit_growth`: cost of an edit in the dearest tenth of the stream over the cheapest, each
        taken beside the same edit by a new editor (`age_cost_by_tenth`).
        `edit_growth_end`: the same of the last tenth over the first.
        `memory_growth`: peak memory of a training step (model, editor and caches included) at the
        greatest depth over that at the least; `step_memory_growth`: the same of what the step
        adds to what is held before it. Both in processes that keep no freed memory.
    """
    clock = Clock(device, kind)
    base = _Axis(shape=setting.step, depth=setting.depth, batch_size=setting.batch_size)
    depths = {d: replace(base, depth=d) for d in setting.depths}
    widths = {w: replace(base, shape=_widened(setting.step, w)) for w in setting.widths}
    sizes = {m: replace(base, batch_size=m) for m in setting.batch_sizes}
    used = {d: _memory_of_its_own(step, setting, device) for d, step in depths.items()}
    seconds = _seconds([*depths.values(), *widths.values(), *sizes.values()], setting, clock)
    least, greatest = used[min(depths)], used[max(depths)]
    return _stream(setting, device, clock) | {
        "memory_growth": greatest["peak_gb"] / least["peak_gb"],
        "step_memory_growth": greatest["step_gb"] / max(least["step_gb"], _PAGE_GB),
        "by_depth": {d: {"train_seconds": seconds[step]} | used[d] for d, step in depths.items()},
        "by_width": {w: {"train_seconds": seconds[step]} for w, step in widths.items()},
        "by_batch_size": {m: {"train_seconds": seconds[step]} for m, step in sizes.items()},
    }


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """A training step along one of the axes."""

    shape: ModelShape
    depth: int
    batch_size: int

    def contender(self, setting: GrowthBenchmark, device: torch.device) -> Fast:
        """The step's model, with a full window."""
        batches = random_batches(
            self.depth + _STEPS + 1, self.batch_size, self.shape.vocabulary, seed=setting.seed
        )
        model = build(self.shape, device=device, seed=setting.seed)
        settings = StepSettings(modules=_modules(self.shape), rank=setting.rank, depth=self.depth)
        return Fast(model, batches, settings)


def _modules(shape: ModelShape) -> tuple[str, ...]:
    return (f"down:{shape.layers // 2}-{shape.layers - 1}",)


def _widened(shape: ModelShape, width: int) -> ModelShape:
    scale = width / shape.hidden
    return replace(shape, hidden=width, inner=int(shape.inner * scale))


def _stream(setting: GrowthBenchmark, device: torch.device, clock: Clock) -> dict[str, Any]:
    """One long stream, tenth by tenth: seconds per edit, what age costs, memory held.

    An edit by the stream's editor is timed beside the same edit by one that is new at the tenth's
    beginning: what the machine does meanwhile, and how long the prompts are, meets both.
    """
    size = setting.batch_size
    n_batches = max(STREAM_PARTS, setting.stream_edits // size)
    batches = random_batches(n_batches + 1, size, setting.stream.vocabulary, seed=setting.seed)
    reset_peak_memory(device)
    before, _ = memory(device)
    old = _editing(setting, batches, device)
    seconds: list[float] = []
    costs: list[float] = []
    held: list[float] = []
    for tenth in range(STREAM_PARTS):
        new = _editing(setting, batches, device)
        first, last = (1 + t * n_batches // STREAM_PARTS for t in (tenth, tenth + 1))
        pairs = _side_by_side(old, new, range(first, last), clock)
        seconds.append(statistics.median(pairs["old"]) / size)
        costs.append(median_ratio(pairs["old"], pairs["new"]))
        del new
        reset_peak_memory(device)
        held.append((memory(device)[0] - before) / 1e9)
    return {
        "edit_growth": max(costs) / min(costs),
        "edit_growth_end": costs[-1] / costs[0],
        "edit_seconds_by_tenth": seconds,
        "age_cost_by_tenth": costs,
        "held_gb_by_tenth": held,
    }


def _side_by_side(old: Fast, new: Fast, places: range, clock: Clock) -> dict[str, list[float]]:
    """Seconds of the same edits by both editors, in turn."""
    contestants = {
        "old": lambda i: old.edit(places[i]),
        "new": lambda i: new.edit(places[i]),
    }
    return interleave(contestants, len(places), clock, warm_up=0)


def _editing(setting: GrowthBenchmark, batches: Sequence[EditBatch], device: torch.device) -> Fast:
    """An editor at the beginning of a stream, its first batch written."""
    settings = StepSettings(
        modules=_modules(setting.stream),
        rank=setting.rank,
        depth=1,
        execution=Execution(cache_bytes=setting.stream_cache_bytes),
    )
    model = build(setting.stream, device=device, seed=setting.seed)
    editing = Fast(model, batches, settings)
    editing.edit(0)()
    return editing


def _seconds(steps: Sequence[_Axis], setting: GrowthBenchmark, clock: Clock) -> dict[_Axis, float]:
    """Median seconds of each training step, taken in turn."""
    contenders = {step: step.contender(setting, clock.device) for step in dict.fromkeys(steps)}
    taken = interleave({str(s): c.train for s, c in contenders.items()}, _STEPS, clock)
    return {step: statistics.median(taken[str(step)]) for step in contenders}


def _memory_of_its_own(
    step: _Axis, setting: GrowthBenchmark, device: torch.device
) -> dict[str, float]:
    """Memory of a training step in a process that has held nothing else before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_memory, step, setting, device, torch.get_num_threads()).result()


def _memory(
    step: _Axis, setting: GrowthBenchmark, device: torch.device, threads: int
) -> dict[str, float]:
    """What is held between training steps, the peak inside one, and what that adds."""
    torch.set_num_threads(threads)
    return_freed_memory()
    reset_peak_memory(device)
    before, _ = memory(device)
    ours = step.contender(setting, device)
    ours.train(0)()
    found: list[tuple[int, int]] = []
    for i in range(1, 1 + _STEPS):
        reset_peak_memory(device)
        held, _ = memory(device)
        ours.train(i)()
        found.append((held, memory(device)[1]))
    return {
        "held_gb": (found[-1][0] - before) / 1e9,
        "peak_gb": (max(peak for _, peak in found) - before) / 1e9,
        "step_gb": statistics.median(peak - held for held, peak in found) / 1e9,
    }
