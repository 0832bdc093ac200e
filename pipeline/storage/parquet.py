"""Reader of anybody's Parquet files: rows of edit files, one column of text files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def foreign_rows(content: bytes) -> list[Any]:
    """The rows of anybody's Parquet file.

    Raises:
        ValueError: It is corrupt or truncated, or a map in it has a key twice.
    """
    try:
        # A map becomes an object, as JSON would have it; else it would be a list of pairs.
        rows: list[Any] = pq.read_table(_reader(content)).to_pylist(maps_as_pydicts="strict")
    except KeyError as error:
        raise ValueError(f"a map has a key twice: {error.args[0]}") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return rows


def _reader(content: bytes) -> Any:
    """A file of bytes that Arrow owns itself.

    Arrow reads in threads of its own, which may let go of the bytes after the interpreter has begun
    to end. Were the bytes Python's, such a thread would wait for the interpreter, be ended by it
    inside a destructor, and the process would abort after it had answered.
    """
    own = pa.BufferOutputStream()
    own.write(content)
    return pa.BufferReader(own.getvalue())


def foreign_column(path: Path, name: str) -> Iterator[Any]:
    """The values of one column of anybody's Parquet file, read a batch of rows at a time.

    Raises:
        KeyError: It has no such column; the argument lists those it has.
        ValueError: It is corrupt or truncated.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if name not in names:
                raise KeyError(", ".join(names))
            for batch in file.iter_batches(batch_size=1024, columns=[name]):
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
