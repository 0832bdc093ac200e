"""Cache of what can be computed again: models, trained networks, key covariance, resume states.

The cache lies at a URI. Where that is a path (of this machine or of a shared mount), files are used
in place. Where it is an object store, a node works on copies in a folder of its own: it fetches
what it lacks, and uploads what it has made. Names say what a file was made from, so a copy grows
old in two cases alone: the store has it no longer, or it is one of those that are replaced.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import uuid
from pathlib import Path

from pipeline.storage.object_store import Storage

logger = logging.getLogger(__name__)

LOCAL_FOLDER = "RLEDIT_LOCAL"


class Cache:
    """A cache at a URI, and where this node works on it.

    Args:
        uri: A path or an object store's URI.
        local: Folder for copies of an object store's files (default: ``$RLEDIT_LOCAL``, else a
            folder of this user's below the system's temporary one).

    Attributes:
        storage: The cache.
        folder: Where its files lie on this machine, as far as they do.
    """

    def __init__(self, uri: str | os.PathLike[str], local: Path | None = None) -> None:
        self.storage = Storage(uri)
        in_place = self.storage.local_path()
        self._copies = in_place is None
        self.folder = in_place or _private_folder(os.fspath(uri), local)

    def file(self, name: str, *, newest: bool = False) -> Path | None:
        """A file on this machine, fetched if only the store has it; None where nobody has it.

        Args:
            name: The file.
            newest: Fetch it although there is a copy: it is one of those that are replaced.
        """
        path = self.folder / name
        if path.is_file() and not (self._copies and newest):
            return path
        if not self._copies or not self.storage.exists(name):
            return None
        self.storage.download(name, path)
        return path

    def publish(self, name: str, *, replace: bool = False) -> None:
        """Hand a file that was made on this machine to all others, unless they have it.

        Args:
            name: The file.
            replace: Put it in place of what they have.
        """
        if self._copies and (replace or not self.storage.exists(name)):
            self.storage.upload(self.folder / name, name)

    def delete(self, name: str) -> None:
        """Forget a file, here and in the store."""
        (self.folder / name).unlink(missing_ok=True)
        self.storage.delete(name)

    def tree(self, name: str, last: str) -> Path | None:
        """A folder on this machine, fetched if only the store has it; None where nobody has it.

        Args:
            name: The folder.
            last: Its file that is published last: without it, the folder is not whole.
        """
        path = self.folder / name
        if (path / last).is_file():
            return path
        if not self._copies or not self.storage.exists(f"{name}/{last}"):
            return None
        below = self.storage.join(*name.split("/"))
        partial = path.parent / f".fetching-{path.name}-{uuid.uuid4().hex[:8]}"
        try:
            for file in below.list():
                below.download(file, partial / file)
            try:
                os.replace(partial, path)
            except OSError:
                # A folder with files in it cannot be replaced: another process was first.
                if not (path / last).is_file():
                    raise
                logger.debug("%s was fetched by another process meanwhile", path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path

    def publish_tree(self, name: str, last: str) -> None:
        """Hand a folder that was made on this machine to all others, unless they have it."""
        if not self._copies or self.storage.exists(f"{name}/{last}"):
            return
        path = self.folder / name
        files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        for file in (*(f for f in files if f != last), last):
            self.storage.upload(path / file, f"{name}/{file}")


def _private_folder(uri: str, local: Path | None) -> Path:
    given = os.environ.get(LOCAL_FOLDER)
    user = os.environ.get("USER", str(os.getuid()))
    base = local or (Path(given) if given else Path(tempfile.gettempdir()) / f"rledit-{user}")
    return base.absolute() / hashlib.sha256(uri.encode()).hexdigest()[:12]
