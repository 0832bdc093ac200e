"""What processes leave behind that are ended between finishing something and clearing up."""

from __future__ import annotations

import logging

from pipeline.locations import Locations
from pipeline.results.lake import Lake
from pipeline.run.stages.statistics import finished_sums
from pipeline.storage import Storage

logger = logging.getLogger(__name__)

PROGRESS = ".progress"


def tidy(grid: str, locations: Locations) -> list[str]:
    """Remove resume states of finished cells, trainings and sums, and shards no manifest names.

    Whatever is still being worked on is left alone. One listing of each place.

    Args:
        grid: The grid.
        locations: Where results and caches lie.

    Returns:
        What was removed.
    """
    lake, cache = Lake(locations.lake), Storage(locations.cache)
    removed = lake.tidy(grid)
    done = {record.address.cell_key for record in lake.manifest(grid) if record.done}
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
