"""Cached sha256 of large files, so that planning again does not read the weights again.

What was read is remembered for a path with its size and times, in a small file of its own below
the user's cache folder: the folder of a checkpoint may be read-only, and two processes cannot
overwrite each other's. Small files are always read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_SMALL = 16 << 20  # bytes; read in milliseconds
_TOLD = 1 << 30  # bytes; reading more takes long enough to say so
_PART = 8 << 20
_TELL_SECONDS = 10.0
# A file may be written again within the grain of its times.
_SETTLED_NS = 2_000_000_000
_BLOB = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class _Stamp:
    """What a file's content is remembered by."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def settled(self) -> bool:
        """Whether the file cannot have changed unseen; a clock that is behind is no reason."""
        age = time.time_ns() - max(self.mtime_ns, self.ctime_ns)
        return not 0 <= age < _SETTLED_NS


_known: dict[_Stamp, str] = {}


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal.

    A file in the hub's cache is not read: it lies there under its sha256.
    """
    if (blob := _blob_name(path)) is not None:
        return blob
    stamp = _stamp(path)
    if stamp.size <= _SMALL:
        return _read(path, stamp.size)
    found = _known.get(stamp) or _recall(stamp)
    if found is None:
        found = _read(path, stamp.size)
        if not stamp.settled or _stamp(path) != stamp:
            return found
        _remember(stamp, found)
    _known[stamp] = found
    return found


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return _Stamp(
        path=str(path.resolve()),
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
    )


def _blob_name(path: Path) -> str | None:
    """The name of the hub's blob that a file of a snapshot is a link to, where that is a sha256."""
    if not path.is_symlink() or path.parent.parent.name != "snapshots":
        return None
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name) else None


def _read(path: Path, size: int) -> str:
    found = hashlib.sha256()
    if size >= _TOLD:
        logger.info("reading %s (%.1f GB), once, to tell its weights from others", path, size / 1e9)
    done, told = 0, time.monotonic()
    with path.open("rb", buffering=0) as file:
        while part := file.read(_PART):
            found.update(part)
            done += len(part)
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                logger.info("  %.1f of %.1f GB", done / 1e9, size / 1e9)
    return found.hexdigest()


def cache_home() -> Path:
    """The folder for what this user's programs can make again."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    # A user may have no home, as in some containers.
    return base if base.is_absolute() else Path(tempfile.gettempdir())


def _note(stamp: _Stamp) -> Path:
    """The file that remembers a path's content."""
    name = hashlib.sha256(stamp.path.encode()).hexdigest()[:32]
    return cache_home() / "rledit" / "digests" / f"{name}.json"


def _recall(stamp: _Stamp) -> str | None:
    try:
        noted = json.loads(_note(stamp).read_bytes())
        found = noted.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # never read, or by a process that was killed: it is read again
    same = noted == asdict(stamp) and isinstance(found, str)
    return found if same and _BLOB.fullmatch(found) else None


def _remember(stamp: _Stamp, sha256: str) -> None:
    written = {**asdict(stamp), "sha256": sha256}
    write_note(_note(stamp), written, "weights are read again by every command")


def write_note(note: Path, content: Mapping[str, Any], otherwise: str) -> None:
    """Write a small file whole or not at all; that it cannot be written is no error.

    Args:
        note: The file, below `cache_home`.
        content: What it says.
        otherwise: What happens without it, for the warning.
    """
    partial = note.with_name(f".{note.name}-{uuid.uuid4().hex[:8]}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content))
        os.replace(partial, note)
    except OSError as error:
        _warn_forgotten(str(note.parent), str(error), otherwise)


@lru_cache(maxsize=4)
def _warn_forgotten(folder: str, reason: str, otherwise: str) -> None:
    logger.warning(
        "%s cannot be written (%s): %s; set XDG_CACHE_HOME to a folder that can",
        folder,
        reason,
        otherwise,
    )
