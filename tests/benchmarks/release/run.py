"""Runs the whole job by all contenders in turn, and says how they compare."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.clock import ClockKind
from tests.benchmarks.process_cpu import spent_by
from tests.benchmarks.release.contenders import PARTS, Library, ReleaseShaped, WarmLibrary
from tests.benchmarks.release.floor import PassesOwed
from tests.benchmarks.release.lockstep import Seconds, in_turn
from tests.benchmarks.release.material import Material, real_rows, tiny_world
from tests.benchmarks.release.pipeline_job import Done, by_pipeline
from tests.benchmarks.release.setting import JobSize, ReleaseBenchmark

TINY, SMOLLM2 = "tiny", "smollm2"
IMPORTS = {
    "reference": "import torch, transformers, tests.reference",
    "ours": "import torch, transformers, rledit.editors.rledit, rledit.stream",
}
_COLD_FLOOR = (
    "trajectory, prefixes", "trajectory", "before, prefixes", "before", "edit", "evaluate",
)  # fmt: skip
_WARM_FLOOR = ("trajectory", "edit", "evaluate")
_JOB = ("load", "trajectory", "before", "edit", "evaluate")


def run_release_shaped(
    setting: ReleaseBenchmark, device: torch.device, kind: ClockKind
) -> dict[str, Any]:
    """The whole job on every model.

    Returns:
        For each model its figures, see `figures`, or `left_out`, why there are none.

    Raises:
        ValueError: It is to run on something else than a CPU, or by wall time.
    """
    if device.type != "cpu" or kind != "cpu":
        raise ValueError(
            "preset 'release-shaped' counts CPU seconds of processes; give --device cpu "
            "--clock cpu --threads 1"
        )
    found: dict[str, Any] = {}
    for name in setting.configurations:
        size = setting.size(name)
        with tempfile.TemporaryDirectory(prefix="rledit-release-") as folder:
            try:
                material = _material(name, setting, size, Path(folder) / "material")
            except FileNotFoundError as error:
                found[name] = {"left_out": str(error)}
                continue
            found[name] = _compared(material, size, setting, Path(folder))
    return {"jobs": found}


def _material(name: str, setting: ReleaseBenchmark, size: JobSize, folder: Path) -> Material:
    """Model and rows.

    Raises:
        FileNotFoundError: They are not here; says what to name.
    """
    counts = size.train_batches * size.batch_size, size.stream_batches * size.batch_size
    if name == TINY:
        return tiny_world(folder, *counts)
    if setting.rows is None:
        raise FileNotFoundError("name two files of edits, --rows TRAIN EVALUATION")
    return real_rows(folder, setting.model or _fetched(), setting.rows, *counts)


def _fetched() -> Path:
    """The folder of SmolLM2-135M that the pipeline has fetched from the package index.

    Raises:
        FileNotFoundError: It has not, or this is no checkout with a pipeline.
    """
    advice = "name a folder of SmolLM2-135M, --model FOLDER, or run a grid of preset smollm2-135m"
    try:
        from pipeline.config.presets import PRESETS
        from pipeline.inputs.checkpoints import cached
    except ImportError as error:
        raise FileNotFoundError(f"{advice} ({error})") from None
    folder = cached(PRESETS["smollm2-135m"].checkpoint)
    if folder is None or not (folder / "config.json").is_file():
        raise FileNotFoundError(f"it is not in this user's cache; {advice}")
    return folder


def _compared(
    material: Material, size: JobSize, setting: ReleaseBenchmark, folder: Path
) -> dict[str, Any]:
    repeats = [_once(material, size, setting, folder / str(i)) for i in range(size.repeats)]
    return {
        "model": material.model.name,
        "sizes": vars(size),
        **_medians(repeats),
    }


def _once(
    material: Material, size: JobSize, setting: ReleaseBenchmark, folder: Path
) -> dict[str, Any]:
    """Everybody once."""
    warm = WarmLibrary(material, size, folder / "store")
    warm.prepare()
    jobs = [ReleaseShaped(material, size)] if setting.reference else []
    jobs += [Library(material, size), warm]
    seconds = in_turn([*jobs, PassesOwed(material, size)], PARTS)
    start = {who: _import_seconds(what) for who, what in IMPORTS.items()}
    scores: dict[str, Any] = {job.name: job.scores() for job in jobs}
    runs: dict[str, Done] = {}
    if setting.pipeline:
        runs = by_pipeline(material, size, folder)
        scores |= {f"pipeline, {name}": dict(done.scores) for name, done in runs.items()}
    return figures(seconds, start, {k: d.spent.cpu_seconds for k, d in runs.items()}) | {
        "pipeline_processes": {k: dict(d.spent.by_process) for k, d in runs.items()},
        "scores": scores,
    }


def _import_seconds(statement: str) -> float:
    return spent_by(["-c", statement], os.environ).cpu_seconds


def figures(
    seconds: Seconds, start: Mapping[str, float], pipeline: Mapping[str, float]
) -> dict[str, Any]:
    """Ratios of one repeat.

    Args:
        seconds: Of the contenders' pieces, see `in_turn`.
        start: What importing costs the reference implementation and ours.
        pipeline: CPU seconds of the pipeline's runs, see `by_pipeline`; empty without it.

    Returns:
        `times`: how many times less ours takes than the reference implementation, part by part and
        as a whole, where that takes part. `over_floor`: the whole of ours over the passes owed.
        `seconds`: of each part.
    """
    sums = {who: {part: sum(v) for part, v in parts.items()} for who, parts in seconds.items()}
    cold, warm, floor = (sums[who] for who in ("cold", "warm", "floor"))
    whole = {
        "library, cold": start["ours"] + _sum(cold, _JOB),
        "library, warm": start["ours"] + _sum(warm, _JOB),
        **{f"pipeline, {name}": value for name, value in pipeline.items()},
    }
    owed = {"cold": _sum(floor, _COLD_FLOOR), "warm": _sum(floor, _WARM_FLOOR)}
    rows = {"cold": floor["before, rows"], "warm": 0.0}
    over_floor = {
        f"{who}, {state}": whole[f"{who}, {state}"]
        / (owed[state] + (0.0 if who == "library" else rows[state]))
        for who in ("library", "pipeline, tasks", "pipeline")
        for state in owed
        if f"{who}, {state}" in whole
    }
    times: dict[str, Any] = {}
    if (reference := sums.get("reference")) is not None:
        theirs = start["reference"] + _sum(reference, _JOB)
        times = _times(reference, theirs, cold, warm, floor, whole)
        whole = {"reference": theirs} | whole
    return {
        **times,
        "over_floor": over_floor,
        "whole_seconds": whole | {f"floor, {k}": v for k, v in owed.items()},
        "seconds": {
            who: {"import": start.get(_importer(who), 0.0), **p} for who, p in sums.items()
        },
    }


def _times(
    reference: Mapping[str, float],
    theirs: float,
    cold: Mapping[str, float],
    warm: Mapping[str, float],
    floor: Mapping[str, float],
    whole: Mapping[str, float],
) -> dict[str, Any]:
    """How many times less ours takes, and what no implementation could exceed by much."""
    scored = ("before", "evaluate")
    most = {
        "evaluation, cold": _sum(floor, ("before, prefixes", *scored)),
        "evaluation, warm": floor["evaluate"],
    }
    return {
        "times": {
            "trajectory": reference["trajectory"] / cold["trajectory"],
            "trajectory, later epoch": reference["trajectory"] / warm["trajectory"],
            "edit batch": reference["edit"] / cold["edit"],
            "training-free edit batch": reference["free"] / cold["free"],
            "training-free edit batch, prefixes at hand": reference["free"] / warm["free"],
            "evaluation, cold": reference["evaluate"] / _sum(cold, scored),
            "evaluation, warm": reference["evaluate"] / _sum(warm, scored),
            **{f"whole job, {who}": theirs / seconds for who, seconds in whole.items()},
        },
        "times_of_the_floor": {k: reference["evaluate"] / v for k, v in most.items()},
    }


def _importer(who: str) -> str:
    return "ours" if who in ("cold", "warm") else who


def _sum(seconds: Mapping[str, float], parts: Sequence[str]) -> float:
    return sum(seconds.get(part, 0.0) for part in parts)


def _medians(repeats: Sequence[Any]) -> Any:
    """The repeats' figures, each number the median."""
    first = repeats[0]
    if isinstance(first, Mapping):
        return {key: _medians([r[key] for r in repeats if key in r]) for key in first}
    return statistics.median(repeats)
