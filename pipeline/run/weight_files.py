"""Tensors of a Hugging Face checkpoint, read one at a time, for models larger than memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from pipeline.inputs.checkpoint_files import CheckpointError
from pipeline.inputs.model_loading import stored_name

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class CheckpointFiles:
    """Where each tensor of a checkpoint lies.

    Args:
        folder: A checkpoint in safetensors, in one file or in several with an index.

    Raises:
        CheckpointError: The folder holds no such checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Where there are both, transformers loads the one.
        if (folder / _SINGLE).is_file():
            with safe_open(folder / _SINGLE, framework="pt") as file:
                self._files: dict[str, str] = dict.fromkeys(file.keys(), _SINGLE)
        elif (folder / _INDEX).is_file():
            index = json.loads((folder / _INDEX).read_text())
            self._files = index["weight_map"]
        else:
            raise CheckpointError(
                f"{folder} has neither {_INDEX} nor {_SINGLE}; open the model with transformers "
                "and save it with save_pretrained to convert it"
            )

    def require(self, names: Sequence[str]) -> None:
        """Check that the checkpoint has these tensors.

        Raises:
            CheckpointError: Some are missing; names the first few.
        """
        missing = [name for name in names if stored_name(name, self._files) not in self._files]
        if missing:
            raise CheckpointError(
                f"{self._folder} lacks {len(missing)} of the model's tensors ({missing[0]}, ...); "
                "open the model with transformers and save it with save_pretrained to convert it"
            )

    def tensor(self, name: str) -> Tensor:
        """Read one tensor; its memory is a mapping of the file that ends with the tensor."""
        stored = stored_name(name, self._files)
        with safe_open(self._folder / self._files[stored], framework="pt") as file:
            value: Tensor = file.get_tensor(stored)
        return value
