"""Resume states: tensors and JSON, written as a whole or not at all, on disk or object store.

A state is two objects: the payload first, then the pointer that names it. A reader follows the
pointer, so a process killed at any moment leaves the previous state in force. No payload's name is
used twice, so two processes that save at the same time cannot mix theirs.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.run.rank_group import Gang
from pipeline.storage.object_store import Storage
from rledit.lazy_torch import Tensor

_POINTER = "latest.json"


Saved = tuple[dict[str, Tensor], dict[str, Any]]


class StateFolder:
    """The newest resume state of one piece of work.

    Args:
        storage: A folder of its own.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __str__(self) -> str:
        return str(self._storage)

    def load(self) -> Saved | None:
        """Tensors and metadata of the newest state, its version among them; or None."""
        from safetensors.torch import load

        pointer = self._newest()
        if pointer is None:
            return None
        metadata = {**pointer["facts"], "version": pointer["version"]}
        return load(self._storage.read_bytes(pointer["tensors"])), metadata

    def metadata(self) -> dict[str, Any]:
        """Metadata of the newest state, whether or not its tensors are there; none without one."""
        pointer = self._pointer()
        return {} if pointer is None else dict(pointer["facts"])

    def save(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], version: int
    ) -> None:
        """Make a state the newest; the one before it is removed afterwards."""
        from safetensors.torch import save

        name = f"{version:08d}-{uuid.uuid4().hex[:12]}.safetensors"
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        before = self._newest()
        self._storage.write_bytes(name, save(contiguous))
        pointer = json.dumps({"tensors": name, "version": version, "facts": metadata})
        self._storage.write_bytes(_POINTER, pointer.encode())
        if before is not None:
            self._storage.delete(before["tensors"])

    def clear(self) -> None:
        """Forget the state; the pointer goes last, so that what is left half-way is known."""
        for name in self._storage.list():
            if name != _POINTER:
                self._storage.delete(name)
        self._storage.delete(_POINTER)
        self._storage.drop_folder()

    def _pointer(self) -> dict[str, Any] | None:
        try:
            pointer: dict[str, Any] = json.loads(self._storage.read_bytes(_POINTER))
        except FileNotFoundError:
            return None
        return pointer

    def _newest(self) -> dict[str, Any] | None:
        pointer = self._pointer()
        if pointer is None:
            return None
        # A payload is gone only where another process has saved or cleared meanwhile; a state
        # without a version is one of an earlier release.
        whole = "version" in pointer and self._storage.exists(pointer["tensors"])
        return pointer if whole else None


def load_together(folder: StateFolder, gang: Gang) -> Saved | None:
    """The newest state, the same one on every rank of a gang.

    Raises:
        RuntimeError: Ranks do not see the same states.
    """
    saved = folder.load()
    # No rank goes on, and so none saves, before all have read.
    versions = gang.all_gather(-1.0 if saved is None else float(saved[1]["version"]))
    if len(set(versions)) > 1:
        raise RuntimeError(
            f"the ranks read resume states of versions {versions} at {folder}; all nodes have to "
            "see the same cache"
        )
    return saved


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    os.close(handle)
    try:
        save_file(dict(tensors), temporary, metadata=dict(metadata) if metadata else None)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
