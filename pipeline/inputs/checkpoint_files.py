"""Files of a checkpoint on this machine: read only as far as tells whether they are whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

_LFS = b"version https://git-lfs"
_LONGEST_HEADER = 100 << 20  # bytes; safetensors' own limit


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used, with the remedy."""


class CheckpointUnavailable(CheckpointError):
    """A checkpoint that cannot be had from here; nothing is wrong with what was fetched."""


def lfs_pointer(path: Path) -> bool:
    """Whether a file is git-lfs's proxy for itself."""
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a checkpoint, as its JSON.

    Raises:
        CheckpointError: There is none, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: the folder has no config.json; name the folder that "
            "save_pretrained or hf download wrote"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {why_no_json(path, error)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


AGAIN = "the download is not complete; fetch the checkpoint again"


def safetensors_header(path: Path) -> Mapping[str, Any]:
    """Name → entry of a safetensors file whose size is what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS))
        if start == _LFS:
            raise CheckpointError(
                f"{path}: this is a git-lfs pointer, not the file; run git lfs pull in the "
                "repository, or fetch it with hf download"
            )
        if len(start) < 8:
            raise CheckpointError(f"{path}: only {size} bytes long: {AGAIN}")
        (length,) = struct.unpack("<Q", start[:8])
        if length > _LONGEST_HEADER:
            raise CheckpointError(f"{path}: this is no safetensors file; expected its header first")
        if 8 + length > size:
            raise CheckpointError(f"{path}: cut short inside its header, {size} bytes: {AGAIN}")
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{path}: its safetensors header cannot be read ({type(error).__name__}); fetch the "
            "file again"
        ) from None
    if size != 8 + length + end:
        raise CheckpointError(
            f"{path}: {size} bytes long, and its header promises {8 + length + end}: {AGAIN}"
        )
    return tensors


def why_no_json(path: Path, error: Exception) -> str:
    """Why a file that should be JSON of some kind is none."""
    if lfs_pointer(path):
        return "this is a git-lfs pointer, not the file; run git lfs pull"
    return f"no valid JSON of its kind ({error}); fetch the checkpoint again"
