"""Files that are whole or not there: written under another name, flushed, and renamed."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

PARTIAL = ".partial-"
"""How the name of something begins that is being written, or was when its process died."""
_SPARE = 16 << 20  # bytes that a disk keeps free


def write_whole(path: Path, content: bytes) -> str:
    """Write a file whole or not at all; its sha256.

    Raises:
        OSError: The disk has no room, or the place may not be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    require_room(path.parent, len(content))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, content: Any) -> str:
    """Write JSON whole or not at all; its sha256."""
    return write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file whole or not at all; its sha256."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_whole(path, save(own, metadata=dict(metadata) if metadata else None))


def require_room(folder: Path, n_bytes: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        OSError: There is none; names the folder.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes + _SPARE:
        raise OSError(
            errno.ENOSPC,
            f"no room: {n_bytes / 1e6:,.1f} MB are to be written, {free / 1e6:,.1f} MB are free",
            str(folder),
        )


def require_empty(path: Path) -> None:
    """Refuse a place for a new folder where something is.

    Raises:
        FileExistsError: It is a file, or a folder with something in it.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, "is there already, and is not empty", str(path))


@contextmanager
def whole_folder(path: Path, n_bytes: int) -> Iterator[Path]:
    """A folder to write into that takes its name once all is in it.

    What a process that was killed has left of it is removed first.

    Args:
        path: Its name; there must be nothing, or an empty folder.
        n_bytes: What is going to be written.

    Raises:
        OSError: The disk has no room, or something is there already; nothing is left behind.
    """
    require_empty(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{PARTIAL}{path.name}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        if not _runs(left.name.removeprefix(prefix).partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    require_room(path.parent, n_bytes)
    made = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{prefix}{os.getpid()}-"))
    try:
        yield made
        for file in made.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        made.chmod(0o777 & ~_umask())
        os.replace(made, path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make sure that names which were given in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _runs(process: str) -> bool:
    """Whether a process of this machine is alive; one whose number is none is not."""
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
