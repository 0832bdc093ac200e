"""Storage behind one interface: local paths, `file://`, and object stores through fsspec.

What a writer may rely on, and what it may not:

- `Storage.write_bytes` commits a whole object. On a local disk or a shared mount that is a
  temporary file in the same directory, fsync, then `os.replace`. On an object store it is one
  PUT, which the store makes visible as a whole; nothing is ever renamed there.
- Several objects are never committed together. Whoever needs that writes the object which
  declares the others complete last (see `pipeline.results.lake.lake`).
- Names that start with `.tmp-` are unfinished writes; listing skips them.
"""

from __future__ import annotations

import errno
import functools
import glob
import inspect
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.storage.redaction import redact
from rledit.errors import UserError

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"

# Libraries whose errors are told as `StoreUnavailable`; they have neither OSError nor ValueError as
# a base.
_DRIVERS = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "requests")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


class StorageError(UserError, ValueError):
    """A location, or a name inside one, that cannot be used; the message says what would do."""


class StoreUnavailable(UserError, OSError):
    """An object store that cannot be reached, or lets nobody in; says what would do."""


class Storage:
    """A folder at a URI, addressed by relative names with forward slashes.

    Args:
        uri: a local path, `file:///…`, or any URI that fsspec knows (`s3://bucket/prefix`,
            `memory://…`). Credentials belong in the environment; if the URI carries some they are
            used, and hidden in every message.

    Raises:
        StorageError: the scheme is unknown, or its driver is not installed.
        StoreUnavailable: here, or in any method: the store cannot be reached, or lets nobody in.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = os.fspath(uri)
        if not self.uri:
            raise StorageError("an empty string is not a location; give a path or a URI")
        self._root: Path | None = None
        if not _SCHEME.match(self.uri):
            self._root = Path(os.path.abspath(os.path.expanduser(self.uri)))
        elif urlsplit(self.uri).scheme in ("file", "local"):
            parts = urlsplit(self.uri)
            if parts.netloc not in ("", "localhost"):
                raise StorageError(
                    f"{redact(self.uri)}: a file URI names an absolute path after three slashes, "
                    f"as in file:///{parts.netloc}{parts.path}"
                )
            self._root = Path(os.path.abspath(unquote(parts.path)))
        if self._root is None:
            self._driver, self._prefix = _remote(self.uri)
            self._fs: Any = _Explained(self._driver, str(self))

    def __repr__(self) -> str:
        return f"Storage({redact(self.uri)!r})"

    def __str__(self) -> str:
        return redact(self.uri)

    @property
    def is_local(self) -> bool:
        """True where names are files of this machine (a shared mount included)."""
        return self._root is not None

    def local_path(self, name: str = "") -> Path | None:
        """The path of `name` on this machine, or None on an object store."""
        return None if self._root is None else self._root / _checked(name, allow_empty=True)

    def filesystem(self) -> tuple[Any, str]:
        """The fsspec filesystem and the root path on it, for libraries that read through one."""
        import fsspec

        if self._root is not None:
            return fsspec.filesystem("file"), str(self._root)
        return self._driver, self._prefix

    def join(self, *names: str) -> Storage:
        """The folder `names` below this one."""
        below = "/".join(_checked(name) for name in names)
        if self._root is not None:  # a file URI would decode a %2F of the name
            return Storage(str(self._root / below))
        base, query, rest = self.uri.partition("?")
        return Storage(f"{base.rstrip('/')}/{below}{query}{rest}")

    def write_bytes(self, name: str, data: bytes) -> None:
        """Commits `data` as `name`: afterwards readers see all of it, before that none of it."""
        name = _checked(name)
        if self._root is not None:
            _replace_file(self._root / name, data)
        else:
            self._fs.pipe_file(self._remote_path(name), data)

    def create_bytes(self, name: str, data: bytes) -> bool:
        """Commits `data` as `name` unless there is one already; of several writers one succeeds.

        An object store has to know conditional writes for that (S3 does, by ``If-None-Match``).

        Returns:
            Whether this call made it.
        """
        name = _checked(name)
        try:
            if self._root is not None:
                _link_file(self._root / name, data)
            else:
                self._fs.pipe_file(self._remote_path(name), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # Not every store says which condition failed, and s3fs needs to be told.
            if error.errno == errno.EINVAL and self.exists(name):
                return False
            raise
        return True

    def upload(self, path: Path, name: str) -> None:
        """Commits a file of this machine as `name`, however large it is."""
        name = _checked(name)
        if self._root is not None:
            _replace_file(self._root / name, path)
        else:
            self._fs.put_file(str(path), self._remote_path(name))

    def download(self, name: str, path: Path) -> None:
        """Copies the object to a file of this machine, whole or not at all.

        Raises:
            FileNotFoundError: there is no object of this name.
        """
        name = _checked(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            if self._root is not None:
                shutil.copyfile(self._root / name, temporary)
            else:
                self._fs.get_file(self._remote_path(name), str(temporary))
            os.replace(temporary, path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self}: there is no {name!r} here") from None
        finally:
            temporary.unlink(missing_ok=True)

    def read_bytes(self, name: str) -> bytes:
        """Returns the whole object.

        Raises:
            FileNotFoundError: there is no object of this name.
        """
        name = _checked(name)
        try:
            if self._root is not None:
                return (self._root / name).read_bytes()
            return bytes(self._fs.cat_file(self._remote_path(name)))
        except FileNotFoundError:
            raise FileNotFoundError(f"{self}: there is no {name!r} here") from None

    def exists(self, name: str) -> bool:
        """True if `name` is an object (not a folder)."""
        name = _checked(name)
        if self._root is not None:
            return (self._root / name).is_file()
        found = self._remote_info(name)
        return found is not None and found["type"] == "file"

    def delete(self, name: str) -> None:
        """Removes `name`; a missing one is no error, so that a delete can be repeated."""
        name = _checked(name)
        try:
            if self._root is not None:
                (self._root / name).unlink()
            else:
                self._fs.rm(self._remote_path(name))
        except FileNotFoundError:
            logger.debug("%s: %s was already gone", self, name)

    def drop_folder(self, name: str = "") -> None:
        """Removes a folder that holds nothing but writes that were never finished.

        Object stores have neither folders nor such writes.
        """
        folder = self.local_path(name)
        if folder is None or not folder.is_dir():
            return
        for unfinished in folder.glob(f"{TEMPORARY_PREFIX}*"):
            unfinished.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()

    def list(self, prefix: str = "") -> list[str]:
        """Names of all objects in the folder `prefix` and below it, sorted."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Maps the name of every object in the folder `prefix` and below it to its bytes."""
        prefix = _checked(prefix, allow_empty=True)
        found = self._local_sizes(prefix) if self._root is not None else self._remote_sizes(prefix)
        return {
            name: size
            for name, size in found.items()
            if not name.rsplit("/", 1)[-1].startswith(TEMPORARY_PREFIX)
        }

    def size(self, name: str) -> int | None:
        """Bytes of one object, None if there is none; one request, however full its folder is."""
        name = _checked(name)
        if self._root is None:
            found = self._remote_info(name)
            return None if found is None else int(found["size"])
        try:
            path = self._root / name
            return path.stat().st_size if path.is_file() else None
        except FileNotFoundError:
            return None

    def starting(self, name: str) -> tuple[str, ...]:
        """Names of the objects of one folder whose names begin like `name`.

        Where the store can, the rest of the folder is not listed.
        """
        folder, _, start = _checked(name).rpartition("/")
        if self._root is not None:
            found = (self._root / folder).glob(f"{glob.escape(start)}*")
            names = {path.relative_to(self._root).as_posix() for path in found if path.is_file()}
        elif "prefix" in inspect.signature(getattr(self._fs, "_find", self._fs.find)).parameters:
            names = set(self._remote_sizes(folder, prefix=start))
        else:
            names = set(self._remote_sizes(folder))
        below = f"{folder}/{start}" if folder else start
        return tuple(sorted(n for n in names if n.startswith(below) and "/" not in n[len(below) :]))

    def _local_sizes(self, prefix: str) -> dict[str, int]:
        assert self._root is not None
        found = {}
        for folder, _, files in os.walk(self._root / prefix):
            for file in files:
                path = Path(folder, file)
                try:
                    found[path.relative_to(self._root).as_posix()] = path.stat().st_size
                except FileNotFoundError:  # a writer replaced or removed it meanwhile
                    logger.debug("%s vanished while listing", path)
        return found

    def _remote_sizes(self, folder: str, **options: str) -> dict[str, int]:
        root = self._remote_path(folder)
        self._fs.invalidate_cache()
        try:
            entries = self._fs.find(root, detail=True, **options)
        except FileNotFoundError:
            return {}
        # Drivers differ in whether they return a leading slash (memory:// does).
        start = len(self._prefix.strip("/")) + 1 if self._prefix.strip("/") else 0
        return {path.lstrip("/")[start:]: int(entry["size"]) for path, entry in entries.items()}

    def _remote_info(self, name: str) -> dict[str, Any] | None:
        """What the store says of one object, None only where it says that there is none.

        A driver's own `isfile` and `exists` take every error for a no.
        """
        self._fs.invalidate_cache()
        try:
            found: dict[str, Any] = self._fs.info(self._remote_path(name))
        except FileNotFoundError:
            return None
        return found

    def _remote_path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if name else self._prefix


class _Explained:
    """A driver whose library's own errors come as one of the user, which names the place."""

    def __init__(self, driver: Any, place: str) -> None:
        self._driver, self._place = driver, place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # e.g. what pickle asks of an object without attributes yet
            raise AttributeError(name)
        call = getattr(self._driver, name)

        @functools.wraps(call)
        def explained(*arguments: Any, **options: Any) -> Any:
            with _explained(self._place):
                return call(*arguments, **options)

        return explained


@contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _DRIVERS:
            raise
        raise StoreUnavailable(
            f"{place}: the store cannot be used ({type(error).__name__}: {redact(str(error))}); "
            "check the address, the network, and that credentials are in the environment, as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are for s3://"
        ) from None


def _remote(uri: str) -> tuple[Any, str]:
    """Opens the fsspec filesystem of `uri`; listings are never cached, other writers exist."""
    import fsspec

    scheme = urlsplit(uri).scheme
    try:
        with _explained(redact(uri)):
            filesystem, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        raise StorageError(
            f"{redact(uri)}: the driver for {scheme}:// is not installed ({error})"
        ) from None
    except ValueError as error:
        raise StorageError(
            f"{redact(uri)}: cannot open this location ({redact(str(error))}); give a local path, "
            "file:///… or a scheme with an fsspec driver such as s3://bucket/prefix"
        ) from None
    return filesystem, path.rstrip("/")


def _checked(name: str, *, allow_empty: bool = False) -> str:
    """Returns `name` if it is a relative name that stays inside its folder."""
    if name == "" and allow_empty:
        return name
    parts = name.split("/")
    if "" in parts or "." in parts or ".." in parts or "\\" in name:
        raise StorageError(
            f"{redact(name)!r} is not a name inside a location: expected a relative path with "
            "forward slashes and without empty, '.' or '..' parts"
        )
    return name


def _replace_file(path: Path, content: bytes | Path) -> None:
    """Writes next to `path`, flushes to disk, then replaces `path` in one step."""
    temporary = _written(path, content)
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


# What mounts say that have no hard links: exFAT, some of SMB and FUSE.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def _link_file(path: Path, content: bytes) -> None:
    """Writes next to `path`, then gives the file its name unless the name is taken.

    On a mount without hard links the name comes before the content, for a moment.
    """
    temporary = _written(path, content)
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _written(path: Path, content: bytes | Path) -> Path:
    """A flushed temporary file beside `path` with that content, or with that of another file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _temporary(path: Path) -> Path:
    return path.parent / f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:12]}"


def _flush_folder(path: Path) -> None:
    """The new name itself must reach the disk before anyone is told that it is there."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
