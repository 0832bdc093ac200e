"""What earlier runs have left in the cache, so that it is neither made nor reckoned again."""

from __future__ import annotations

from pipeline.cells import Cell
from pipeline.run.stages.prepare import MODELS
from pipeline.run.stages.statistics import shard_file, statistics_folder, whole_file
from pipeline.run.stages.train import trained_name
from pipeline.storage import Storage
from rledit.world import world_model_key
from rledit.world.model import TRAINING_FILE


class Cached:
    """Looks into a cache; a place that is not there holds nothing.

    Args:
        uri: The cache; None: none is looked into.
    """

    def __init__(self, uri: str | None = None) -> None:
        self._storage = None if uri is None else Storage(uri)

    def has_model(self, cell: Cell) -> bool:
        """Whether the cell's model of the embedded world is trained."""
        if cell.model.checkpoint is not None:
            return False
        return self._has(
            f"{MODELS}/{world_model_key(cell.world(), cell.model_spec)}/{TRAINING_FILE}"
        )

    def has_network(self, cell: Cell) -> bool:
        """Whether the cell's hypernetwork is trained."""
        return self._storage is not None and self._has(trained_name(cell))

    def has_moment(self, cell: Cell, linear: str) -> bool:
        """Whether the second moment of a linear is summed, all shards of it."""
        if self._storage is None:
            return False
        folder = statistics_folder(cell)
        return self._has(whole_file(folder, linear)) or all(
            self._has(shard_file(folder, linear, shard)) for shard in range(cell.statistics.shards)
        )

    def _has(self, name: str) -> bool:
        return self._storage is not None and self._storage.exists(name)
