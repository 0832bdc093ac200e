"""Names of files in the cache: for stages that write them, and for plans that ask what is there."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.inputs.content_hashes import fingerprint, plain
from pipeline.plan.cell_keys import (
    calibration_key_of,
    covariance_key_of,
    identity_of,
    known_key_of,
    train_key_of,
)
from pipeline.plan.cells import Cell
from pipeline.plan.prefixes import store_choice
from pipeline.plan.versions import code_version

MODELS = "models"
UNEDITED = "unedited"
_OF_THE_EDITOR = (
    "editor", "editor_source", "settings", "calibration", "statistics", "checkpoints", "also_after",
    "training_seed", "validated",
)  # fmt: skip


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


def unedited_asked(cell: Cell) -> dict[str, Any]:
    """Everything that the record of what the unedited model says depends on, as plain JSON.

    Raises:
        ConfigError: The model's configuration cannot be had.
    """
    choice = store_choice(cell)
    asked = {k: v for k, v in identity_of(cell).items() if k not in _OF_THE_EDITOR} | {
        "first_layer": choice.layer,
        "stored_prefixes": choice.made,
        "answers": asdict(cell.answers),
        "gpu": cell.resources.gpus > 0,
        "code": code_version(),
    }
    found: dict[str, Any] = plain(asked)
    return found


def unedited_name(cell: Cell) -> str:
    """The name in the cache of the record of what the unedited model says of the cell's stream."""
    return f"{UNEDITED}/{fingerprint(unedited_asked(cell))}.json"
