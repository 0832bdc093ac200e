"""Garbage collection: removes what interrupted processes left in lake and cache."""

from __future__ import annotations

import logging

from pipeline.results.lake.lake import Lake
from pipeline.run.stages.covariance import finished_sums
from pipeline.storage.object_store import Storage
from pipeline.storage.run_paths import RunPaths

logger = logging.getLogger(__name__)

PROGRESS = ".progress"


def garbage_collect(grid: str, run_paths: RunPaths) -> list[str]:
    """Remove resume states of finished cells, trainings and sums, and shards no manifest names.

    Whatever is still being worked on is left alone. One listing of each place.

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
    if removed or states:
        logger.info("removed %d files that interrupted processes left", len(removed + states))
    return removed + states
