"""Resume states on disk: tensors and JSON, written whole or not at all.

A state is two files of one version: the payload first, then the pointer that names it. A reader
follows the pointer, so a process killed at any moment leaves the previous state in force.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


class StateFolder:
    """The newest resume state of one piece of work.

    Args:
        folder: A folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pointer = folder / "latest.json"

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the newest state, or None."""
        if not self._pointer.is_file():
            return None
        pointer = json.loads(self._pointer.read_text())
        return load_file(self._folder / pointer["tensors"]), pointer["facts"]

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], version: int) -> None:
        """Make a state the newest; older payloads are removed afterwards."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{version:08d}.safetensors"
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_tensors(self._folder / name, contiguous)
        write_atomically(self._pointer, json.dumps({"tensors": name, "facts": facts}).encode())
        for path in self._folder.glob("*.safetensors"):
            if path.name != name:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget the state."""
        for path in self._folder.glob("*"):
            path.unlink(missing_ok=True)
        if self._folder.is_dir():
            self._folder.rmdir()


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    os.close(handle)
    try:
        save_file(dict(tensors), temporary, metadata=dict(metadata) if metadata else None)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
