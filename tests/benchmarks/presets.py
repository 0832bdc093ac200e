"""The presets by name: what each runs, at which sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rledit.model import Execution
from tests.benchmarks.clock import ClockKind
from tests.benchmarks.growth import GrowthBenchmark, run_growth
from tests.benchmarks.models import ModelShape
from tests.benchmarks.release.setting import SIZES, ReleaseBenchmark
from tests.benchmarks.savings import SavingsBenchmark, run_savings
from tests.benchmarks.scoring import ScoringBenchmark, run_scoring
from tests.benchmarks.steps import StepBenchmark, run_steps
from tests.benchmarks.values import ValuesBenchmark, run_values
from tests.benchmarks.wide import WideBenchmark, run_wide

SMALL = ModelShape(
    family="llama", hidden=512, inner=1408, layers=8, heads=8, kv_heads=8, vocabulary=32_000
)
STREAM = ModelShape(
    family="llama", hidden=128, inner=352, layers=4, heads=4, kv_heads=4, vocabulary=2_000
)
LLAMA3_8B = ModelShape(
    family="llama", hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, vocabulary=128_256
)
MISTRAL_7B = ModelShape(
    family="mistral", hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, vocabulary=32_768
)
GPT_J_6B = ModelShape(
    family="gptj", hidden=4096, inner=16384, layers=28, heads=16, kv_heads=16, vocabulary=50_400
)
SMALL_EDITS = {
    "down_half": ("down:4-7",),
    "gate_up_half": ("gate:4-7", "up:4-7"),
    "down_quarter": ("down:6-7",),
    "gate_up_quarter": ("gate:6-7", "up:6-7"),
}

Setting = (
    StepBenchmark
    | WideBenchmark
    | GrowthBenchmark
    | ScoringBenchmark
    | SavingsBenchmark
    | ValuesBenchmark
    | ReleaseBenchmark
)
Runner = Callable[[Any, torch.device, ClockKind], dict[str, Any]]


def _real(shape: ModelShape, *modules: str, rank: int = 1024) -> StepBenchmark:
    """A real shape with the layers edited on ZsRE, bf16; too large to account for operations.

    Prefixes lie on the device, as the hidden states do that the floor begins with.
    """
    return StepBenchmark(
        shape=shape,
        configurations={"zsre": modules},
        rank=rank,
        dtype=torch.bfloat16,
        account=False,
        repeats=5,
        execution=Execution(cache_on_device=True),
    )


def _release_shaped(
    setting: ReleaseBenchmark, device: torch.device, kind: ClockKind
) -> dict[str, Any]:
    # Needs psutil, and the pipeline: the other presets do without.
    from tests.benchmarks.release.run import run_release_shaped

    return run_release_shaped(setting, device, kind)


PRESETS: dict[str, Setting] = {
    "small": StepBenchmark(shape=SMALL, configurations=SMALL_EDITS, rank=256, repeats=3),
    "wide": WideBenchmark(),
    "llama3-8b": _real(LLAMA3_8B, "gate:11-15", "up:18-24"),
    "mistral-7b": _real(MISTRAL_7B, "down:17-18"),
    "gpt-j-6b": _real(GPT_J_6B, "down:18-26"),
    "growth": GrowthBenchmark(stream=STREAM, step=SMALL),
    "scoring": ScoringBenchmark(shape=SMALL, modules=("down:4-7",)),
    "savings": SavingsBenchmark(shape=SMALL, modules=("down:6-7",), rank=256),
    # A quarter of the way up, where the published settings put them (layer 8 of 28 or of 32).
    "values": ValuesBenchmark(shape=SMALL, layer=2),
    "release-shaped": ReleaseBenchmark(configurations=SIZES),
}
RUNNERS: dict[type, Runner] = {
    StepBenchmark: run_steps,
    WideBenchmark: run_wide,
    GrowthBenchmark: run_growth,
    ScoringBenchmark: run_scoring,
    SavingsBenchmark: run_savings,
    ValuesBenchmark: run_values,
    ReleaseBenchmark: _release_shaped,
}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the command line may change of a preset; None leaves it.

    Attributes:
        repeats: Timed repeats.
        layers: Keep that many layers of the model; edits move with the top of the stack.
        edits: Edits per batch (steps, `release-shaped`), or of the stream (`growth`, `scoring`).
        reference: Whether the reference implementation takes part.
        profile: Whether a profile of our steps is taken.
        memory: Whether memory is looked at in steps of ours, with no contender beside it.
        token_budget: Padded tokens of a physical batch.
        configurations: Run only these.
        model, rows: Folder of a checkpoint, and files of edits (`release-shaped`).
        train_batches, stream_batches: Batches of the trajectory and of the stream
            (`release-shaped`).
        pipeline: Whether the pipeline takes part (`release-shaped`).
    """

    repeats: int | None = None
    layers: int | None = None
    edits: int | None = None
    reference: bool = True
    profile: bool = False
    memory: bool = False
    token_budget: int | None = None
    configurations: tuple[str, ...] = ()
    model: Path | None = None
    rows: tuple[Path, Path] | None = None
    train_batches: int | None = None
    stream_batches: int | None = None
    pipeline: bool = True


def choose(name: str, choices: Choices) -> Setting:
    """A preset with the choices applied.

    Raises:
        ValueError: A choice does not apply to this preset.
    """
    preset = PRESETS[name]
    changes: dict[str, Any] = {}
    if choices.repeats is not None:
        changes["repeats"] = choices.repeats
    if choices.edits is not None:
        key = {StepBenchmark: "batch_size", SavingsBenchmark: "batch_size"}
        key |= {GrowthBenchmark: "stream_edits", ScoringBenchmark: "edits"}
        changes[key.get(type(preset), "edits")] = choices.edits
    if not choices.reference:
        changes["reference"] = False
    if choices.profile:
        changes["profile"] = True
    if choices.memory:
        changes["memory"] = True
    if not choices.pipeline:
        changes["pipeline"] = False
    own = ("model", "rows", "train_batches", "stream_batches")
    changes |= {k: v for k in own if (v := getattr(choices, k)) is not None}
    if choices.token_budget is not None:
        changes["execution"] = _execution(preset, choices.token_budget)
    if choices.configurations:
        changes["configurations"] = _some(preset, choices.configurations)
    if choices.layers is not None:
        base = replace(preset, **{k: v for k, v in changes.items() if k == "configurations"})
        changes |= _reduced(base, choices.layers)
    unknown = set(changes) - set(preset.__dataclass_fields__)
    if unknown:
        raise ValueError(f"preset {name!r} has no {', '.join(sorted(unknown))} to choose")
    return replace(preset, **changes)


def _execution(preset: Setting, token_budget: int) -> Any:
    execution = getattr(preset, "execution", None)
    return None if execution is None else replace(execution, token_budget=token_budget)


def _some(preset: Setting, names: tuple[str, ...]) -> dict[str, Any]:
    known: Any = getattr(preset, "configurations", {})
    missing = [n for n in names if n not in known]
    if missing:
        raise ValueError(f"unknown configurations {missing}; this preset has {[*known]}")
    return {n: known[n] for n in names}


def _reduced(preset: Setting, layers: int) -> dict[str, Any]:
    """The shape with fewer layers, and edits in its last ones, as many kinds as before."""
    if not isinstance(preset, StepBenchmark):
        return {"layers": layers}
    first = max(0, layers - max(1, layers // 2))
    return {
        "shape": replace(preset.shape, layers=layers),
        "configurations": {
            name: tuple(f"{m.partition(':')[0]}:{first}-{layers - 1}" for m in modules)
            for name, modules in preset.configurations.items()
        },
    }
