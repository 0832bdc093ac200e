"""Garbage collection: removes what interrupted processes left in lake and cache."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.results.lake.lake import Lake
from pipeline.results.lake.schemas import TABLES
from pipeline.run.cache import Cache
from pipeline.run.stages.covariance import finished_sums
from pipeline.storage.object_store import TEMPORARY_PREFIX, Storage
from pipeline.storage.run_paths import RunPaths

logger = logging.getLogger(__name__)

PROGRESS = ".progress"
# How names begin of files and folders that get another one once they are whole.
_UNFINISHED = (TEMPORARY_PREFIX, ".building-", ".converting-", ".fetching-")
_ABANDONED_SECONDS = 24 * 3600.0
# Where such lie in a cache. The rest of the place may be anybody's.
_CACHED = ("converted", "edited", "models", "statistics", "trained")


def garbage_collect(grid: str, run_paths: RunPaths) -> list[str]:
    """Remove resume states of finished cells, trainings and sums, and shards no manifest names.

    So go files and folders of this machine that were never finished, a day after they were last
    written to. Whatever is still being worked on is left alone. One listing of each place.

    Args:
        grid: The grid.
        run_paths: Where results and caches lie.

    Returns:
        What was removed.
    """
    lake, cache = Lake(run_paths.lake), Storage(run_paths.cache)
    removed = lake.garbage_collect(grid)
    finished = [record for record in lake.manifest(grid) if record.done]
    done = {key for r in finished for key in (r.address.cell_key, r.stored_key)}
    states = [name for name in cache.list("states") if name.split("/")[1] in done]
    trained = cache.list("trained")
    states += [
        name
        for name in trained
        if PROGRESS in name and f"{name.partition(PROGRESS)[0]}.safetensors" in trained
    ]
    states += finished_sums(cache)
    for name in states:
        cache.delete(name)
    folders = {name.rpartition("/")[0] for name in states}
    # A kill in the midst of a first write leaves a folder that no listing shows.
    folders |= {f"states/{key}" for key in done}
    folders |= {f"{name.removesuffix('.safetensors')}{PROGRESS}" for name in trained}
    for folder in folders:
        cache.drop_folder(folder)
    places = [Cache(run_paths.cache).folder / name for name in _CACHED]
    places += [path for path in map(lake.storage.local_path, TABLES) if path is not None]
    removed += states + _drop_abandoned(places)
    if removed:
        logger.info("removed %d files that interrupted processes left", len(removed))
    return removed


def _drop_abandoned(places: Iterable[Path]) -> list[str]:
    """Remove what was begun below some folders and then left for a day; returns what that was."""
    before = time.time() - _ABANDONED_SECONDS
    gone = [path for place in places for path in _unfinished(place) if _written(path) < before]
    for path in gone:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return [str(path) for path in gone]


def _unfinished(place: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(place):
        named = [name for name in (*folders, *files) if name.startswith(_UNFINISHED)]
        folders[:] = [name for name in folders if name not in named]
        yield from (Path(folder, name) for name in named)


def _written(path: Path) -> float:
    """When a file, or anything in a folder, was last written to; now where it has just gone."""
    try:
        return max(p.stat().st_mtime for p in (path, *path.rglob("*")))
    except FileNotFoundError:
        return time.time()
