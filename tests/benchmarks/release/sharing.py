"""What the cells of one grid share: all of them together, and each by itself with nothing at hand.

    python -m tests.benchmarks.release.sharing [--model FOLDER --rows TRAIN EVALUATION]

Six editors, two streams, two seeds. Together, the tasks of the grid run in one process with one
cache: the model is loaded once, prefixes, unedited answers and networks are made once. Apart, every
cell is a process with an empty cache. Both give the same rows, and the same grid under another name
has nothing to run. Without a model and rows it is the tiny world.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.parse import load_grid
from pipeline.plan.grid_plan import make_plan
from pipeline.results.lake.lake import Lake
from pipeline.storage.run_paths import RunPaths
from tests.benchmarks.process_cpu import spent_by
from tests.benchmarks.release.material import Material, real_rows, tiny_world
from tests.benchmarks.release.pipeline_job import TASKS, grid_of
from tests.benchmarks.release.setting import SIZES, JobSize

TABLES = ("scores", "edits")


def editors_of(size: JobSize) -> list[dict[str, Any]]:
    """Six editors of the same modules, each with little to train or nothing."""
    modules = {"modules": list(size.modules)}
    trained = modules | {
        "rank": size.rank,
        "n_blocks": size.n_blocks,
        "initial_step": size.step,
        "train_steps": 1,
        "trajectory_batches": size.train_batches,
    }
    free = modules | {"step": size.step}
    return [
        {"editor": "rledit", "settings": trained | {"depth": size.depth}},
        {"editor": "malmen", "settings": trained},
        {"editor": "mend", "settings": trained},
        {"editor": "untrained", "settings": modules | {"initial_step": size.step}},
        {"editor": "ultraedit", "settings": free | {"loss_group": 4}},
        {
            "editor": "rledit",
            "variant": "official",
            "settings": trained | {"reference": "official"},
        },
    ]


def compare(material: Material, size: JobSize, folder: Path) -> dict[str, Any]:
    """Run the grid together and apart.

    Returns:
        CPU seconds of both and their ratio, how many cells there are, whether all rows are equal,
        and how many cells the same grid under another name would run.
    """
    grid = grid_of(material, size) | {
        "editors": editors_of(size),
        "streams": [
            {"n_batches": n, "batch_size": size.batch_size}
            for n in (max(1, size.stream_batches // 2), size.stream_batches)
        ],
        "seeds": [0, 1],
    }
    grid["datasets"] = [{**grid["datasets"][0], "order": "shuffled"}]  # type: ignore[index]
    together = _run(grid, folder / "together")
    apart, rows = 0.0, {}
    for i, one in enumerate(_cells(grid)):
        apart += _run(one, folder / f"apart-{i}")
        rows |= rows_of(folder / f"apart-{i}")
    found = rows_of(folder / "together")
    renamed = _written(grid | {"name": "renamed"}, folder)
    plan = make_plan(load_grid(renamed, [], None, None), _lake(folder / "together"))
    return {
        "cells": len(found),
        "together_seconds": together,
        "apart_seconds": apart,
        "times_less": apart / together,
        "rows_equal": found == rows,
        "renamed_runs": len(plan.missing),
    }


def rows_of(results: Path) -> dict[str, Any]:
    """Cell key → the rows of its scores and edits."""
    lake = _lake(results)
    return {
        record.address.cell_key: {table: lake.columns(table, record) for table in TABLES}
        for record in lake.manifest()
    }


def _cells(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Grids of one cell each."""
    for editor in grid["editors"]:
        for stream in grid["streams"]:
            for seed in grid["seeds"]:
                yield {**grid, "editors": [editor], "streams": [stream], "seeds": [seed]}


def _run(grid: Mapping[str, Any], folder: Path) -> float:
    file = _written(grid, folder)
    arguments = ["-m", TASKS, str(file), str(folder), str(folder / "cache")]
    return spent_by(arguments, {**os.environ, "OMP_NUM_THREADS": "1"}).cpu_seconds


def _written(grid: Mapping[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{grid['name']}.yaml"
    file.write_text(yaml.safe_dump(dict(grid)))
    return file


def _lake(results: Path) -> Lake:
    return Lake(RunPaths.under(results).lake)


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Run as the arguments say; writes the JSON file if one is named."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.release.sharing")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="SmolLM2-135M")
    parser.add_argument("--rows", type=Path, nargs=2, metavar=("TRAIN", "EVALUATION"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--stream-batches", type=int, default=4, metavar="N")
    parser.add_argument("--train-batches", type=int, default=2, metavar="N")
    parser.add_argument("--edits", type=int, default=20, metavar="N", help="edits a batch")
    chosen = parser.parse_args(arguments)
    if (chosen.model is None) != (chosen.rows is None):
        parser.error("--model and --rows go together")
    name = "tiny" if chosen.model is None else "smollm2"
    size = JobSize(
        modules=SIZES[name].modules,
        rank=SIZES[name].rank,
        batch_size=chosen.edits,
        train_batches=chosen.train_batches,
        stream_batches=chosen.stream_batches,
    )
    # Each seed draws from a pool that is larger than its stream.
    counts = 2 * chosen.train_batches * chosen.edits, 2 * chosen.stream_batches * chosen.edits
    with tempfile.TemporaryDirectory(prefix="rledit-sharing-") as folder:
        place = Path(folder)
        if chosen.model is None:
            material = tiny_world(place / "material", *counts)
        else:
            material = real_rows(place / "material", chosen.model, tuple(chosen.rows), *counts)
        found = compare(material, size, place)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    for key, value in main(sys.argv[1:]).items():
        print(f"{key:20} {value}")
