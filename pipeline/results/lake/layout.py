"""Layout of the lake: file names, and checks of rows; plain Python."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any
from urllib.parse import quote

from pipeline.results.lake.records import CellAddress, CellRecord, TableRows
from pipeline.results.lake.schemas import DATA_TABLES, OPTIONAL_TABLES, PARTITION, Columns
from pipeline.storage.redaction import redact_settings
from rledit.errors import UserError

logger = logging.getLogger(__name__)

SUFFIX = ".parquet"
_DIGEST = "."  # between a cell's key and the digest of its shard
_DIGITS = 16
LONGEST_FOLDER = 200  # bytes; file systems stop at 255


class LakeError(UserError, ValueError):
    """A row, file or location that the lake cannot accept, and what was expected instead."""


class CorruptShard(LakeError):
    """A file that is not readable Parquet: half-written, truncated or damaged."""


def shard_name(table: str, address: CellAddress, sha256: str = "") -> str:
    """The name of a cell's shard inside the lake.

    Folder values are percent-encoded, so `meta-llama/Llama-3` is one folder; every reader of hive
    partitions decodes them.

    Args:
        table: The table.
        address: The cell.
        sha256: Digest of the shard, which becomes part of its name: what another writer of the
            same cell has written can neither be replaced by it, nor be taken for it. Empty for a
            manifest, of which a cell has one.

    Raises:
        LakeError: a value cannot be a folder's name.
    """
    folders = "/".join(f"{name}={folder_value(name, getattr(address, name))}" for name in PARTITION)
    file = file_name(address.cell_key)
    if sha256:
        file = f"{address.cell_key}{_DIGEST}{sha256[:_DIGITS]}{SUFFIX}"
    return f"{table}/{folders}/{file}"


def shard_belongs(name: str, cell_key: str) -> bool:
    """Whether the file of that name is a shard of a cell."""
    file = name.rsplit("/", 1)[-1]
    return file == file_name(cell_key) or file.startswith(f"{cell_key}{_DIGEST}")


def shard_key(name: str) -> str:
    """The cell whose shard has that name."""
    return name.rsplit("/", 1)[-1].removesuffix(SUFFIX).rpartition(_DIGEST)[0]


def folder_value(name: str, value: str) -> str:
    """What stands for a value in the name of its folder, ``name=value``.

    Raises:
        LakeError: It cannot be a folder's name.
    """
    if not value or value == "__HIVE_DEFAULT_PARTITION__":
        raise LakeError(f"{name}={value!r} cannot be a folder of the lake: give it a name")
    encoded = quote(value, safe="")
    if len(encoded) > LONGEST_FOLDER:
        raise LakeError(
            f"{name}={value!r} is too long for a folder of the lake ({LONGEST_FOLDER} bytes)"
        )
    return encoded


def file_name(cell_key: str) -> str:
    """The name of a cell's file in any table.

    Raises:
        LakeError: the key would not survive as a file name.
    """
    if not cell_key or quote(cell_key, safe="") != cell_key or cell_key.startswith("."):
        raise LakeError(
            f"{cell_key!r} is not a cell key: expected letters, digits, '-', '_', '.' and '~'"
        )
    return f"{cell_key}{SUFFIX}"


def complete_columns(rows: TableRows, known: Columns, where: str) -> dict[str, list[Any]]:
    """Turns rows or columns into complete columns; refuses names the table does not have."""
    if isinstance(rows, Mapping):
        given = {name: list(values) for name, values in rows.items()}
        lengths = {name: len(values) for name, values in given.items()}
        if len(set(lengths.values())) > 1:
            raise LakeError(f"{where}: columns differ in length: {lengths}")
        n_rows = next(iter(lengths.values()), 0)
        names = set(given)
    else:
        n_rows = len(rows)
        names = {name for row in rows for name in row}
        given = {name: [row.get(name) for row in rows] for name in names}
    for name in sorted(names - set(known)):
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise LakeError(f"{where}: unknown column {name!r}{hint} Columns: {', '.join(known)}")
    return {name: given.get(name, [None] * n_rows) for name in known}


def tables_of(record: CellRecord) -> tuple[str, ...]:
    """The tables of which a cell with rows has shards."""
    return (*DATA_TABLES, *(table for table in OPTIONAL_TABLES if table in record.files))


def file_fault(record: CellRecord, sizes: Mapping[str, int]) -> str | None:
    """Which of the files that a manifest row lists is missing or cut short; None where none is."""
    if not record.has_rows:
        return None
    for table in tables_of(record):
        file = record.files[table]
        found = sizes.get(file["path"])
        if found != file["bytes"]:
            state = "missing" if found is None else f"{found} bytes long, not {file['bytes']}"
            return f"the {table} shard {file['path']} is {state}; run the cell again"
    return None


def checked_files(record: CellRecord, sizes: Mapping[str, int]) -> CellRecord:
    """Downgrades a done cell to "incomplete" if a file is missing or not of its size.

    A failed one is left without rows then.
    """
    reason = file_fault(record, sizes)
    if reason is None:
        return record
    if not record.done:
        logger.warning("failed cell %s: %s", record.address.cell_key, reason)
        return replace(record, files={})
    logger.warning("cell %s is incomplete: %s", record.address.cell_key, reason)
    return replace(record, status="incomplete", reason=reason)


def as_json(settings: Mapping[str, Any], address: CellAddress) -> str:
    """Settings as JSON without secrets.

    Raises:
        LakeError: a value is not JSON.
    """
    try:
        return json.dumps(redact_settings(settings), sort_keys=True)
    except TypeError as error:
        raise LakeError(
            f"cell {address.cell_key}: settings must be plain JSON values ({error})"
        ) from None


def utc(moment: datetime | None) -> datetime | None:
    """A moment in UTC as the lake stores it, without a time zone."""
    if moment is None or moment.tzinfo is None:
        return moment
    return moment.astimezone(UTC).replace(tzinfo=None)
