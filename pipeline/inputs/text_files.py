"""Reader of text files: documents one by one, as a corpus may be larger than memory.

A ``.jsonl`` or ``.ndjson`` file has a document in the key ``text`` of every line, a Parquet file in
the column ``text`` of every row, any other file a document a line. Blank documents are left out.
Files that have another form, tables and objects under the name of a text among them, are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from rledit.datasets.errors import DataFileError, RowError
from rledit.datasets.rows import refuse_foreign, wide_encoding
from rledit.datasets.values import kind_of

_KEY = "text"
_PARQUET = b"PAR1"
_START = 512  # bytes by which a foreign file is known
_UNCLEAR = {
    ".parquet": "is named .parquet and is no Parquet file",
    ".json": "is named .json, which does not say where a document ends",
    ".csv": "is a table, whose lines are no documents",
    ".tsv": "is a table, whose lines are no documents",
}
_OBJECTS = (".jsonl", ".ndjson")
_REMEDY = (
    "Give a document a line as .txt, an object with `text` a line as .jsonl, or Parquet with a "
    "column `text`"
)
_EXPECTED = f"expected a JSON object with the key {_KEY!r}"


def texts_of(path: Path) -> Iterator[str]:
    """The documents of a file in order.

    Raises:
        DataFileError: The file is not there, or is something else than text; says what to do.
        RowError: A row is not UTF-8, or holds no text.
    """
    if not path.is_file():
        raise DataFileError(str(path), "is not there: no file at this path", "Check the path")
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise DataFileError(str(path), reason, "Check its permissions") from None
    if start.startswith(_PARQUET):
        return _parquet(path)
    refuse_foreign(start, str(path))
    if (other := wide_encoding(start)) is not None:
        remedy = f"Convert it: `iconv -f {other} -t utf-8 {path} > NEW`"
        raise DataFileError(str(path), f"is {other.upper()}, not UTF-8", remedy)
    suffix = path.suffix.lower()
    if suffix in _UNCLEAR:
        raise DataFileError(str(path), _UNCLEAR[suffix], _REMEDY)
    return _lines(path, suffix in _OBJECTS)


def _lines(path: Path, objects: bool) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                # A byte-order mark may open the file, and only that.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                _fail(
                    path,
                    number,
                    f"is not UTF-8 at its byte {error.start}; convert the file from the encoding "
                    "it was written in, e.g. `iconv -f latin1 -t utf-8`",
                )
            if not line.strip():
                continue
            if number == 1 and not objects and _is_object(line):
                reason = f"has JSON objects in its lines and is not named {' or '.join(_OBJECTS)}"
                raise DataFileError(str(path), reason, _REMEDY)
            document = _parsed(path, number, line) if objects else line.strip()
            if document.strip():
                yield document


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        _fail(path, number, f"is not valid JSON ({error}); {_EXPECTED}")
    if not isinstance(row, dict):
        _fail(path, number, f"is {kind_of(row)}; {_EXPECTED}")
    if _KEY not in row:
        _fail(path, number, f"has the keys {', '.join(row) or 'none'}; {_EXPECTED}")
    return _checked(path, number, row[_KEY])


def _parquet(path: Path) -> Iterator[str]:
    from pipeline.storage.parquet import foreign_column

    try:
        for number, value in enumerate(foreign_column(path, _KEY), start=1):
            document = _checked(path, number, value)
            if document.strip():
                yield document
    except KeyError as error:
        raise DataFileError(
            str(path),
            f"has no column {_KEY!r} but {error.args[0]}",
            f"Rename the column of the documents to {_KEY!r}",
        ) from None
    except ValueError as error:
        if isinstance(error, DataFileError | RowError):
            raise
        raise DataFileError(
            str(path),
            f"is a corrupt or truncated Parquet file ({error})",
            "Download the shard again and compare its sha256 with the published one",
        ) from None


def _checked(path: Path, number: int, value: Any) -> str:
    if not isinstance(value, str):
        _fail(
            path,
            number,
            f"`{_KEY}` is {kind_of(value)}, not text; give the document's text, or leave the row "
            "out",
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _fail(
            path, number, f"`{_KEY}` holds half of a surrogate pair, which no tokenizer can encode"
        )
    return value


def _fail(path: Path, number: int, reason: str) -> NoReturn:
    raise RowError(str(path), number, reason)
