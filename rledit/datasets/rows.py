"""Open a JSON, JSONL or CSV file as numbered rows, or say in one message why that is impossible.

The format is told by the content, not by the suffix: a text that opens with ``[`` is an array,
one that opens with ``{`` is JSONL; CSV goes by its suffix (see `rledit.datasets.tables`). Rows are
counted from 1; for JSONL the number is the line's.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rledit.datasets.errors import DataFileError
from rledit.datasets.tables import SUFFIXES, table_rows

# Byte-order marks; UTF-32's begins like UTF-16's, so it comes first.
_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


# Without a mark: which of the first bytes are not zero, where the first characters are ASCII, as
# those of JSON are.
_UNMARKED: tuple[tuple[tuple[bool, ...], str], ...] = (
    ((False, False, False, True), "utf-32be"),
    ((True, False, False, False), "utf-32le"),
    ((False, True, False, True), "utf-16be"),
    ((True, False, True, False), "utf-16le"),
)


def wide_encoding(content: bytes) -> str | None:
    """The encoding of such a text, by iconv's name; None for any other content."""
    marked = (encoding for mark, encoding in _MARKS if content.startswith(mark))
    there = tuple(byte != 0 for byte in content[:4])
    unmarked = (encoding for pattern, encoding in _UNMARKED if there == pattern)
    return next(marked, None) or next(unmarked, None)


_DOWNLOAD_AGAIN = (
    "Correct it if you wrote it; if it was published, download it again and compare its sha256"
)

_NOT_AUTHORISED = (
    "It is likely an error or login page: download again, with a token if the data is gated"
)

# First bytes by which a file that is not JSON text is known, with what it is and the remedy.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "is a git-lfs pointer, not the data",
        "Run `git lfs pull` in its repository, or download the file through the hub's "
        "`resolve` address",
    ),
    (
        b"PAR1",
        "is a Parquet file",
        "Open it through the pipeline, which reads Parquet and URIs",
    ),
    (b"\x1f\x8b", "is gzip-compressed", "Unpack it with gunzip first"),
    (b"PK\x03\x04", "is a zip archive", "Unpack it first"),
    (
        b"<!doctype html",
        "is an HTML page, not data",
        _NOT_AUTHORISED,
    ),
    (
        b"<html",
        "is an HTML page, not data",
        _NOT_AUTHORISED,
    ),
)


@dataclass(frozen=True, kw_only=True)
class RowFile:
    """The rows of one file.

    Attributes:
        path: Path or URI as it was given.
        rows: Pairs of row number (from 1) and parsed value.
        data_hash: sha256 of the file's bytes, in hexadecimal.
    """

    path: str
    rows: tuple[tuple[int, Any], ...]
    data_hash: str


def open_rows(path: str | Path) -> RowFile:
    """Read a JSON array, a JSONL or a CSV file.

    Raises:
        DataFileError: The file is missing, empty, truncated, not UTF-8, not a list of rows, or
            something else than JSON (git-lfs pointer, Parquet, gzip, zip, HTML page).
    """
    name, content = str(path), read_bytes(path)
    return RowFile(
        path=name,
        rows=tuple(parse_rows(content, name)),
        data_hash=hashlib.sha256(content).hexdigest(),
    )


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a local file.

    Raises:
        DataFileError: It is missing, unreadable or a directory.
    """
    try:
        return Path(path).read_bytes()
    except IsADirectoryError:
        reason, remedy = "is a directory", "Name a file in it (JSON, JSONL, CSV or Parquet)"
        raise DataFileError(str(path), reason, remedy) from None
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DataFileError(str(path), reason, "Check the path and its permissions") from error


def rows_given(path: str | Path, rows: Iterable[Any], data_hash: str | None) -> RowFile:
    """Number rows that somebody else has opened (Parquet, an object store).

    Args:
        path: Name of their origin, for messages.
        rows: The parsed rows.
        data_hash: sha256 of the origin's bytes; without it the rows themselves are hashed.
    """
    numbered = tuple(enumerate(rows, start=1))
    if not numbered:
        raise DataFileError(str(path), "holds no rows", _DOWNLOAD_AGAIN)
    if data_hash is None:
        digest = hashlib.sha256()
        for _, row in numbered:
            line = json.dumps(row, sort_keys=True, default=str)
            digest.update(line.encode() + b"\n")
        data_hash = digest.hexdigest()
    return RowFile(path=str(path), rows=numbered, data_hash=data_hash)


def parse_rows(content: bytes, name: str) -> list[tuple[int, Any]]:
    """Parse the bytes of a JSON array, JSONL or CSV file into numbered rows.

    Raises:
        DataFileError: See `open_rows`.
    """
    refuse_foreign(content, name)
    return _parse_text(_decode(content, name), name)


def _parse_text(text: str, name: str) -> list[tuple[int, Any]]:
    if name.lower().endswith(SUFFIXES):
        return table_rows(text, name)
    start = text.lstrip()[:1]
    if not start:
        raise DataFileError(name, "is empty", _DOWNLOAD_AGAIN)
    if name.endswith(".parquet"):
        raise DataFileError(name, "is named .parquet and is no Parquet file", _DOWNLOAD_AGAIN)
    if start not in "[{":
        reason = f"starts with {text.lstrip()[:20]!r}, which is neither a JSON array nor JSONL"
        remedy = "Give a list of objects, one object per line, or a table named .csv"
        raise DataFileError(name, reason, remedy)
    rows = _parse_array(text, name) if start == "[" else _parse_lines(text, name)
    if not rows:
        raise DataFileError(name, "holds no rows", _DOWNLOAD_AGAIN)
    return rows


def refuse_foreign(content: bytes, name: str) -> None:
    """Refuse what is known by its first bytes to be no JSON or plain text.

    Raises:
        DataFileError: A git-lfs pointer, Parquet, gzip, zip or an HTML page; says what to do.
    """
    head = content[:64].lstrip().lower()
    for magic, reason, remedy in _FOREIGN:
        if head.startswith(magic.lower()):
            raise DataFileError(name, reason, remedy)


def _decode(content: bytes, name: str) -> str:
    other = wide_encoding(content)
    if other is not None:
        remedy = f"Convert it: `iconv -f {other} -t utf-8 {name} > NEW`"
        raise DataFileError(name, f"is {other.upper()}, not UTF-8", remedy)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f"byte {error.start} (line {line}{_broken_rows(content, name)})"
        raise DataFileError(
            name,
            f"is not UTF-8 at {where}",
            "Convert it, e.g. `iconv -f latin1 -t utf-8`, from the encoding it was written in",
        ) from error


def _broken_rows(content: bytes, name: str) -> str:
    """The numbers of the rows with undecodable bytes, where the rest still parses."""
    try:
        rows = _parse_text(content.decode("utf-8", errors="surrogateescape"), name)
    except DataFileError:
        return ""
    broken = [str(number) for number, row in rows if not _is_encodable(row)]
    return f"; rows {', '.join(broken[:10])}" if broken else ""


def _is_encodable(row: Any) -> bool:
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parse_array(text: str, name: str) -> list[tuple[int, Any]]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken_array(text, name, error) from error
    return list(enumerate(parsed, start=1))


def _broken_array(text: str, name: str, error: Exception) -> DataFileError:
    """Say at which row a broken array stops, by reading the rows before it one by one."""
    decoder = json.JSONDecoder()
    position, row = text.index("[") + 1, 1
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        try:
            _, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        row += 1
    return _broken(name, f"row {row}", error, truncated=not text.rstrip().endswith("]"))


def _parse_lines(text: str, name: str) -> list[tuple[int, Any]]:
    whole = _whole_object(text)
    if whole is not None and not name.endswith((".jsonl", ".ndjson")):
        keys = ", ".join(list(whole)[:6])
        raise DataFileError(
            name,
            f"is one object (keys: {keys}), not a list of rows",
            "Give a list of objects, or name a file of one object per line .jsonl",
        )
    # Only \n ends a line: str.splitlines would also cut at U+2028, which JSON text may contain.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = []
    for number, line in lines:
        try:
            rows.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            last = number == lines[-1][0]
            raise _broken(name, f"row {number}", error, truncated=last) from error
    return rows


def _whole_object(text: str) -> Mapping[str, Any] | None:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _broken(name: str, where: str, error: Exception, truncated: bool) -> DataFileError:
    if isinstance(error, RecursionError):
        return DataFileError(name, f"{where} is nested too deeply", "Check how it was written")
    if truncated:
        return DataFileError(name, f"is truncated: it ends inside {where}", _DOWNLOAD_AGAIN)
    return DataFileError(name, f"{where} is not valid JSON ({error})", _DOWNLOAD_AGAIN)
