"""The whole job by the pipeline: a grid of one cell, run as a command with a Ray of its own."""

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


def by_pipeline(material: Material, size: JobSize, folder: Path) -> tuple[Done, Done]:
    """The job in an empty results folder, and again with prefixes and unedited answers at hand.

    Raises:
        RuntimeError: A run failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = folder / "grid.yaml"
    grid.write_text(yaml.safe_dump(grid_of(material, size)))
    cold = _run(grid, folder / "cold", folder / "cache")
    for found in (folder / "cache").iterdir():
        if found.name not in AT_HAND:
            shutil.rmtree(found) if found.is_dir() else found.unlink()
    return cold, _run(grid, folder / "warm", folder / "cache")


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


def _run(grid: Path, results: Path, cache: Path) -> Done:
    arguments = ["-m", "pipeline.cli", "run", str(grid), "--workers", "1"]
    places = ["--results", str(results), "--cache", str(cache)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    spent = spent_by([*arguments, *places], environment)
    return Done(spent=spent, scores=_scores(results))


def _scores(results: Path) -> dict[str, float]:
    from pipeline.results.lake.lake import Lake
    from pipeline.storage.run_paths import RunPaths

    lake = Lake(RunPaths.under(results).lake)
    (record,) = lake.manifest()
    columns = lake.columns("scores", record)
    final = columns["final"].index(True)
    return {kind: columns[name][final] for kind, name in _KINDS.items()}
