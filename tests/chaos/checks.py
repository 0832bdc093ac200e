"""Checks of a disturbed run: nothing lost, nothing doubled, nothing left open."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pipeline.results.diff import diff_lakes
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellRecord
from pipeline.results.lake.schemas import DATA_TABLES, OPTIONAL_TABLES
from pipeline.results.tracking.tracker import Tracker
from pipeline.storage.object_store import TEMPORARY_PREFIX
from pipeline.storage.run_paths import RunPaths

_TABLES = (*DATA_TABLES, *OPTIONAL_TABLES)


def problems(
    run_paths: RunPaths, undisturbed: RunPaths, finished: Mapping[str, datetime]
) -> list[str]:
    """Everything in which a disturbed run that has come to its end differs from one left alone.

    Args:
        run_paths: Of the disturbed run.
        undisturbed: Of the other.
        finished: When each cell ended that was done at the time of the fault, by key.
    """
    lake, expected = Lake(run_paths.lake), Lake(undisturbed.lake)
    records, wanted = lake.manifest(), expected.manifest()
    grid = wanted[0].address.grid
    return [
        *_differences(lake, expected),
        *_rows(lake, records, wanted),
        *_files(lake, records),
        *_repeated(records, finished),
        *_unread(run_paths),
        *_tracked(run_paths, lake, grid),
    ]


def left_open(run_paths: RunPaths, grid: str) -> list[str]:
    """Runs of MLflow that no process works on and nobody has closed; closes them."""
    return Tracker(run_paths.tracking, grid).close_stale_runs(lambda tags: False)


def finish_times(lake: Lake) -> dict[str, datetime]:
    """When each finished cell ended, by key."""
    if not lake.exists():
        return {}
    return {r.address.cell_key: r.values["finished_at"] for r in lake.manifest() if r.done}


def _differences(lake: Lake, expected: Lake) -> Iterator[str]:
    report = diff_lakes(lake, expected)
    if not report.equal:
        yield from (f"diff: {line}" for line in report.lines)


def _rows(lake: Lake, records: Sequence[CellRecord], wanted: Sequence[CellRecord]) -> Iterator[str]:
    """Every cell once, and every table with as many rows: `diff` compares rows by their key."""
    written = (record for record in lake.rows() if record.asked is None)
    counts = Counter(record.address.cell_key for record in written)
    yield from (f"cell {key} has {n} manifest rows" for key, n in counts.items() if n != 1)
    found = {record.address.cell_key: record for record in records}
    for record in wanted:
        key = record.address.cell_key
        if key not in found or not found[key].done:
            yield f"cell {key} is {found[key].status if key in found else 'lost'}"
            continue
        for table, file in record.files.items():
            rows = found[key].files[table]["rows"]
            if rows != file["rows"]:
                yield f"cell {key}: {rows} rows of {table}, expected {file['rows']}"


def _files(lake: Lake, records: Sequence[CellRecord]) -> Iterator[str]:
    """Whole files, and no others: who reads the folder without the manifest reads them all."""
    named = {file["path"] for record in records for file in record.files.values()}
    found = {table: set(lake.storage.list(table)) for table in (*_TABLES, "cells")}
    if len(found["cells"]) != len(records):
        yield f"lake: {len(found['cells'])} files in cells, but {len(records)} cells"
    for table in _TABLES:
        for name in sorted(found[table] - named):
            yield f"lake: {name} is named by no cell"
    for record in records:
        if record.done:
            yield from lake.verify(record.address.cell_key)


def _repeated(records: Sequence[CellRecord], finished: Mapping[str, datetime]) -> Iterator[str]:
    """Cells that were done already when the fault struck were left alone."""
    for record in records:
        before = finished.get(record.address.cell_key)
        if before is not None and record.values["finished_at"] != before:
            yield f"cell {record.address.cell_key} was done before the fault and ran again"


def _unread(run_paths: RunPaths) -> Iterator[str]:
    """Unfinished writes have names that no reader takes for a result; no resume state is left."""
    for root in (Path(run_paths.lake), Path(run_paths.cache)):
        for folder, _, files in os.walk(root):
            for file in files:
                whole = file.endswith((".parquet", ".json", ".safetensors"))
                if file.startswith(TEMPORARY_PREFIX) and whole:
                    yield f"{Path(folder, file)} is unfinished and looks whole"
    cache = Path(run_paths.cache)
    left = ("states/*", "trained/*.progress", "statistics/*/*.progress")
    for state in sorted(path for place in left for path in cache.glob(place)):
        yield f"{state} was not cleared"


def _tracked(run_paths: RunPaths, lake: Lake, grid: str) -> Iterator[str]:
    """No run of MLflow is left open, and its cells are the lake's."""
    left = left_open(run_paths, grid)
    if left:
        yield f"MLflow: {len(left)} runs were left RUNNING"
    repaired = Tracker(run_paths.tracking, grid).rebuild(lake)
    if repaired:
        yield f"MLflow: {repaired} cells were not, or not wholly, logged"
