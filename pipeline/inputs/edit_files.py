"""Reader of edit files: local, on a hub at a pinned revision, or in any store; Parquet too.

`rledit.datasets` takes rows; what is not a local JSON or JSONL file is turned into rows here.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from pipeline.config.hub_refs import parse_hub_file
from pipeline.storage.object_store import Storage
from pipeline.storage.redaction import redact
from rledit.datasets import DataFileError, ReadReport, RowFile
from rledit.datasets.edits import map_rows
from rledit.datasets.rows import parse_rows, read_bytes, rows_given

_PINNED = re.compile(r"#sha256=(?P<digest>[0-9a-fA-F]{64})$")
_PARQUET = b"PAR1"
_AGAIN = "Download the shard again and compare its sha256 with the published one"


def read_data(location: str, format: str = "auto", strict: bool = False) -> ReadReport:
    """Read every edit of a file; see `rledit.datasets.read_edits` for its errors.

    Args:
        location: As for `open_data`.
        format: Name of a format, or ``"auto"``.
        strict: Refuse blank targets instead of skipping them.
    """
    return map_rows(open_data(location), format, strict)


def open_data(location: str) -> RowFile:
    """The rows of a JSON, JSONL or Parquet file.

    Args:
        location: A path, ``hf://datasets/owner/name@revision/file`` (the revision a commit), or a
            URI of any store; with ``#sha256=…`` behind it the content must have that hash.

    Raises:
        DataFileError: The file cannot be fetched or opened as rows, or is not the one that was
            pinned; says what to do.
    """
    pin = _PINNED.search(location)
    plain = location[: pin.start()] if pin else location
    content = _content(plain)
    name = redact(plain)
    digest = hashlib.sha256(content).hexdigest()
    if pin and digest != pin["digest"].lower():
        raise DataFileError(
            name,
            f"has the sha256 {digest}, not the pinned {pin['digest'].lower()}",
            "Fetch the version that was pinned, or pin this one if it is meant",
        )
    if content.startswith(_PARQUET):
        return rows_given(name, _parquet_rows(content, name), digest)
    numbered = tuple(parse_rows(content, name))
    return RowFile(path=name, rows=numbered, data_hash=digest)


def _content(location: str) -> bytes:
    if location.startswith("hf://"):
        return read_bytes(hub_file(location))
    if "://" not in location:
        return read_bytes(location)
    folder, _, name = location.rpartition("/")
    try:
        return Storage(folder).read_bytes(name)
    except FileNotFoundError:
        reason, remedy = "does not exist", "Check the URI"
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({redact(str(error))})"
        remedy = "Check the URI, and that its credentials are in the environment"
    raise DataFileError(redact(location), reason, remedy)


def _parquet_rows(content: bytes, name: str) -> list[Any]:
    from pipeline.storage.parquet import foreign_rows

    try:
        return foreign_rows(content)
    except ValueError as error:
        reason = f"is a corrupt or truncated Parquet file ({error})"
        raise DataFileError(name, reason, _AGAIN) from None


def hub_file(location: str) -> Path:
    """The local copy of ``hf://datasets/owner/name@revision/file``, fetched if it is not there.

    Raises:
        DataFileError: The location is not written so, its revision is no commit, or the hub does
            not hand the file out; says what to do.
    """
    try:
        named = parse_hub_file(location)
    except ValueError as error:
        raise DataFileError(location, *error.args) from None
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(
            hf_hub_download(
                named.repository, named.file, repo_type="dataset", revision=named.revision
            )
        )
    except errors.GatedRepoError:
        reason, remedy = "is gated", "Accept its terms on the hub and set HF_TOKEN"
    except errors.RevisionNotFoundError:
        reason = f"has no revision {named.revision!r}"
        remedy = "Take a commit hash from the dataset's history"
    except errors.LocalEntryNotFoundError:
        reason = "cannot be fetched: the hub does not answer, and there is no local copy"
        remedy = "Check the network, or download the file elsewhere and name its path"
    except errors.EntryNotFoundError:
        reason, remedy = f"has no file {named.file!r}", "Check the name at that revision"
    except errors.RepositoryNotFoundError:
        reason = "does not exist, or is private"
        remedy = "Check the name; for a private dataset set HF_TOKEN"
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = f"cannot be fetched ({type(error).__name__})"
        remedy = "Check name, revision and network, or download it and name its path"
    raise DataFileError(location, reason, remedy)
