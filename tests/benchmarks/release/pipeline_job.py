"""The whole job by the pipeline: a grid of one cell, run with a Ray of its own, and without."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.benchmarks.process_cpu import Spent, spent_by
from tests.benchmarks.release.material import Material
from tests.benchmarks.release.setting import JobSize

TASKS = "tests.benchmarks.release.tasks"
AT_HAND = ("prefixes", "unedited")
"""Folders of the cache that a warm job finds; it trains its network again."""
_KINDS = {"edit": "efficacy", "equivalent": "generalization", "unrelated": "specificity"}


@dataclass(frozen=True, kw_only=True)
class Done:
    """One run of the pipeline.

    Attributes:
        spent: What it took.
        scores: Means of the last checkpoint by prompt kind, in percent.
    """

    spent: Spent
    scores: Mapping[str, float]


def by_pipeline(material: Material, size: JobSize, folder: Path) -> dict[str, Done]:
    """The job in empty folders, and again with prefixes and unedited answers at hand.

    Returns:
        `cold` and `warm`: the command `rledit run`, with a Ray of its own, tracking and report.
        `tasks, cold` and `tasks, warm`: the same tasks in one process, to tell the two apart.

    Raises:
        RuntimeError: A run failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = folder / "grid.yaml"
    grid.write_text(yaml.safe_dump(grid_of(material, size)))
    found = {}
    for ray, name in ((False, "tasks, "), (True, "")):
        cache = folder / f"{name}cache"
        found[f"{name}cold"] = _run(grid, folder / f"{name}cold", cache, ray)
        for entry in cache.iterdir():
            if entry.name not in AT_HAND:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        found[f"{name}warm"] = _run(grid, folder / f"{name}warm", cache, ray)
    return found


def grid_of(material: Material, size: JobSize) -> dict[str, object]:
    """The grid of the one cell, as plain data."""
    files = {"train": str(material.train), "evaluation": str(material.stream)}
    return {
        "name": "release-shaped",
        "unedited": False,
        "models": [{"name": "model", "checkpoint": str(material.model)}],
        "datasets": [{"name": "rows", "files": files, "format": "facts", "order": "file"}],
        "editors": [
            {"editor": "rledit", "settings": {"modules": list(size.modules), **size.settings}}
        ],
        "streams": [{"n_batches": size.stream_batches, "batch_size": size.batch_size}],
        "answers": {"sample": 0},
    }


def _run(grid: Path, results: Path, cache: Path, ray: bool) -> Done:
    if ray:
        arguments = ["-m", "pipeline.cli", "run", str(grid), "--workers", "1"]
        arguments += ["--results", str(results), "--cache", str(cache)]
    else:
        arguments = ["-m", TASKS, str(grid), str(results), str(cache)]
    spent = spent_by(arguments, {**os.environ, "OMP_NUM_THREADS": "1"})
    return Done(spent=spent, scores=final_scores(results))


def final_scores(results: Path) -> dict[str, float]:
    """Means of the one cell of a lake after its last edit, in percent, by prompt kind."""
    from pipeline.results.lake.lake import Lake
    from pipeline.storage.run_paths import RunPaths

    lake = Lake(RunPaths.under(results).lake)
    (record,) = lake.manifest()
    columns = lake.columns("scores", record)
    final = columns["final"].index(True)
    return {kind: columns[name][final] for kind, name in _KINDS.items()}
