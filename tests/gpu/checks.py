"""What tests of a GPU do, on any device: that it works is tested on the CPU."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config.parse import load_grid
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.estimate import cell_estimates, placement_of
from pipeline.results.lake.lake import Lake
from pipeline.run import kept_model
from pipeline.run.reporting import silent
from pipeline.run.tasks import perform, tasks_of
from pipeline.storage.run_paths import RunPaths
from rledit.editors import editor_class
from rledit.editors.base import Editor
from rledit.model import EditableModel
from rledit.prefix_cache import PrefixCache
from rledit.prefix_store import PrefixStore
from tests.benchmarks.agreement import FLOAT32_TOLERANCE, ROUNDINGS
from tests.unit.helpers.sequential_editors import CONTEXTS, VALUE, moments
from tests.unit.helpers.text_edits import text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import random_batches, tiny_model

CPU = torch.device("cpu")
GRID = Path(__file__).parents[1] / "cluster" / "tiny.yaml"
SETTINGS: dict[str, dict[str, Any]] = {
    "rledit": {"rank": 8, "n_blocks": 1, "init_std": 0.05, "initial_step": 1e-2},
    "ultraedit": {"step": 1e-2},
    "memit": {"contexts": CONTEXTS, **VALUE},
}
_READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal")


def editor(name: str, device: torch.device, dtype: torch.dtype) -> Editor:
    """An editor of a tiny model, which is made on the CPU: a device draws other numbers."""
    model = EditableModel(
        tiny_model("llama").to(device, dtype), tiny_tokenizer("llama"), ("down:1,2",)
    )
    cls = editor_class(name)
    torch.manual_seed(0)
    made = cls(model, cls.Config(modules=model.modules, **SETTINGS[name]))
    if "statistics" in made.needs_of(made.config):
        made.load_covariance(moments(model))
    return made


def edits_of(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a stream of three batches changes in each matrix, in float64 on the CPU."""
    one = editor(name, device, dtype)
    weights = one.model.weights
    before = {name: weights.read(name).double().cpu().clone() for name in one.model.modules}
    for batch in text_batches(one.model, 3, 4, group_size=one.group_size):
        one.edit(batch)
    return {name: weights.read(name).double().cpu() - old for name, old in before.items()}


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm of `other`, over all matrices together."""
    apart = sum(float((one[name] - other[name]).square().sum()) for name in other)
    whole = sum(float(value.square().sum()) for value in other.values())
    return float((apart / whole) ** 0.5)


def tolerance(name: str, dtype: torch.dtype) -> float:
    """How far edits of two devices may lie apart: in bfloat16, about as far as it rounds."""
    if dtype == torch.float32:
        return FLOAT32_TOLERANCE
    rounded, exact = (edits_of(name, CPU, kind) for kind in (dtype, torch.float32))
    return ROUNDINGS * distance(rounded, exact)


class HostReads(TorchDispatchMode):
    """Counts how often values of a device are waited for by the host.

    Args:
        device: The device; of the CPU, reads of single numbers are counted.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device.type
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        own = [a for a in args if isinstance(a, Tensor) and a.device.type == self._device]
        left = isinstance(found, Tensor) and found.device.type != self._device
        self.count += bool(own) and (str(func).rpartition(".")[0] in _READS or left)
        return found


def stored(folder: Path, device: torch.device, dtype: torch.dtype) -> PrefixCache:
    """The prefix cache of a tiny model, with a store."""
    model = tiny_model("llama").to(device, dtype)
    cache = EditableModel(model, tiny_tokenizer("llama"), ("down:1,2",)).prefix_cache
    cache.keep_in(PrefixStore(folder, cache.fingerprint(), 1 << 30))
    return cache


def in_any_company(folder: Path, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a store holds the same bits of prompts that were recorded together and one by one."""
    samples = random_batches(1, 12)[0].edit.samples
    together, apart = (stored(folder / name, device, dtype) for name in ("together", "apart"))
    for _ in together.store_ahead(samples):
        pass
    for sample in reversed(samples):
        for _ in apart.store_ahead([sample]):
            pass
    return all(
        torch.equal(one, other)
        for sample in samples
        for one, other in zip(
            *(cache._found([sample])[0] for cache in (together, apart)), strict=True
        )
    )


def synchronisations(work: Callable[[], object]) -> int:
    """How often PyTorch says that work on the card made the host wait; 0 without a card."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(one.message) for one in caught)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a grid left, by editor.

    Attributes:
        scores: Rows of scores.
        steps: Values by step and metric, times aside.
        peak_gb: Peak of each cell.
        planned_gb: What `plan` has for it.
    """

    scores: dict[str, list[dict[str, Any]]]
    steps: dict[str, dict[tuple[int, str], float]]
    peak_gb: dict[str, float]
    planned_gb: dict[str, float]


def ran(folder: Path, gpus: float, *changes: str) -> Ran:
    """Run the tiny grid as tasks of this process, which keeps its model, on the CPU or on a GPU."""
    cells = cells_of(load_grid(GRID, [f"resources={{gpus: {gpus:g}}}", *changes]))
    run_paths = RunPaths.under(folder)
    kept_model.drop()
    try:
        for task in tasks_of(cells).values():
            perform(task, run_paths, silent)
    finally:
        kept_model.drop()
    found = Ran(scores={}, steps={}, peak_gb={}, planned_gb=_planned(cells))
    lake = Lake(run_paths.lake)
    for cell in cells:
        record = lake.record(key_of(cell))
        assert record is not None and record.done, record
        result = lake.result(record, tables=("scores", "steps"))
        found.scores[cell.label] = [
            dict(zip(result.scores, row, strict=True))
            for row in zip(*result.scores.values(), strict=True)
        ]
        found.steps[cell.label] = {
            (step, metric): value
            for step, metric, value in zip(
                *(result.steps[name] for name in ("step", "metric", "value")), strict=True
            )
            if not metric.endswith("_seconds")
        }
        found.peak_gb[cell.label] = record.values["peak_memory_gb"]
    return found


def _planned(cells: list[Cell]) -> dict[str, float]:
    estimates = cell_estimates(cells, [], placement_of(cells))
    return {cell.label: one.memory_gb for cell, one in zip(cells, estimates, strict=True)}


def memory_over_tasks(folder: Path, device: torch.device) -> list[int]:
    """Bytes on the device: before, with one model kept, with another in its place, and after.

    On the CPU, where nobody counts them, those of the model that is kept.
    """

    def held() -> int:
        if device.type == "cuda":
            return torch.cuda.memory_reserved()
        kept = kept_model._kept
        return 0 if kept is None else sum(p.nbytes for p in kept.model.parameters())

    def load() -> nn.Module:
        return nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16))).to(device)

    kept_model.drop()
    if device.type == "cuda":
        # What the first product on a card allocates stays, and is no model's.
        load()(torch.ones(4096, 1024, device=device))
        gc.collect()
        torch.cuda.empty_cache()
    found = [held()]
    for name in ("one", "other"):
        (folder / name).mkdir()
        with kept_model.keeping():
            model = kept_model.take(folder / name, "float32", device, load)
            model(torch.ones(4096, 1024, device=device))
            del model
        found.append(held())
    kept_model.drop()
    return [*found, held()]


def reads_of_a_solve(name: str, device: torch.device) -> int:
    """How often the host waits for a shift to be solved from rows that are on the device."""
    one: Any = editor(name, device, torch.float32)
    (batch,) = text_batches(one.model, 1, 4, group_size=one.group_size)
    with torch.no_grad():
        captured = one.propose(batch).captured
        (shape,) = one.shapes
        keys = torch.stack([captured.keys[module] for module in one.shapes[shape]])
        values = torch.stack([captured.values[module] for module in one.shapes[shape]])
        z = one.normalise(shape, torch.cat([keys, values], dim=-1))
        with HostReads(device) as reads:
            one.solve(shape, keys, z)
    return reads.count
