"""Names of files in the cache: for stages that write them, and for plans that ask what is there."""

from __future__ import annotations

from pipeline.plan.cell_keys import (
    calibration_key_of,
    covariance_key_of,
    known_key_of,
    train_key_of,
)
from pipeline.plan.cells import Cell

MODELS = "models"


def trained_name(cell: Cell) -> str:
    """The name of the cell's trained network in the cache."""
    return network_name(cell.editor_name, train_key_of(cell))


def network_name(editor: str, train_key: str) -> str:
    """The name of a trained network in the cache, by its key."""
    return f"trained/{editor}-{train_key}.safetensors"


def covariance_folder(cell: Cell) -> str:
    """Where in the cache the moments lie: one folder per model, corpus and precision."""
    return f"statistics/{covariance_key_of(cell)}"


def shard_file(folder: str, module: str, shard: int) -> str:
    """A linear's sum over one shard."""
    return f"{folder}/{module}.shard{shard}.safetensors"


def whole_file(folder: str, module: str) -> str:
    """A linear's sum over the whole corpus, as it is shared."""
    return f"{folder}/{module}.whole.safetensors"


def imported_file(model_hash: str, module: str, file_hash: str) -> str:
    """A published key covariance, or projection, of a linear that has been verified."""
    return f"statistics/imported/{model_hash}/{module}.{file_hash.replace('#', '-')}.safetensors"


def known_name(cell: Cell) -> str:
    """The name of the record of real facts that the cell's model knows, in the cache."""
    return f"known/{known_key_of(cell)}.json"


def calibration_name(cell: Cell) -> str:
    """The name of the record in the cache."""
    return f"calibrated/{calibration_key_of(cell)}.json"
