"""Cache contents that an estimate leaves out: models, networks and covariance that are there."""

from __future__ import annotations

from pipeline.plan.cache_names import (
    MODELS,
    covariance_folder,
    known_name,
    network_name,
    shard_file,
    trained_name,
    unedited_name,
    whole_file,
)
from pipeline.plan.cell_keys import former_keys_of
from pipeline.plan.cells import Cell
from pipeline.plan.prefixes import prefix_folder
from pipeline.storage.object_store import Storage
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
        """Whether the cell's model of the synthetic world is trained."""
        if cell.model.checkpoint is not None:
            return False
        return self._has(
            f"{MODELS}/{world_model_key(cell.world(), cell.model_spec)}/{TRAINING_FILE}"
        )

    def has_network(self, cell: Cell) -> bool:
        """Whether the cell's hypernetwork is trained."""
        if self._storage is None:
            return False
        _, former = former_keys_of(cell)
        old = former is not None and self._has(network_name(cell.editor_name, former))
        return old or self._has(trained_name(cell))

    def has_known(self, cell: Cell) -> bool:
        """Whether the cell's model was asked which real facts it knows."""
        return self._storage is not None and self._has(known_name(cell))

    def has_unedited(self, cell: Cell) -> bool:
        """Whether what the cell's unedited model says of the stream is kept."""
        return self._storage is not None and self._has(unedited_name(cell))

    def has_moment(self, cell: Cell, linear: str) -> bool:
        """Whether the key covariance of a linear is summed, all shards of it."""
        if self._storage is None:
            return False
        folder = covariance_folder(cell)
        return self._has(whole_file(folder, linear)) or all(
            self._has(shard_file(folder, linear, shard)) for shard in range(cell.statistics.shards)
        )

    def prefix_bytes(self, cell: Cell, layer: int) -> int:
        """Bytes of the prefixes of the cell's model at a layer, of whatever prompts."""
        if self._storage is None:
            return 0
        sizes = self._storage.sizes(prefix_folder(cell, layer))
        return sum(size for name, size in sizes.items() if name.endswith(".safetensors"))

    def _has(self, name: str) -> bool:
        return self._storage is not None and self._storage.exists(name)
