"""The lake's rows as Parquet: schemas, bytes and datasets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.results.lake.layout import CorruptShard, LakeError, complete_columns
from pipeline.results.lake.records import CellAddress, TableRows
from pipeline.results.lake.schemas import (
    ADDRESS,
    ADDRESS_ROWS,
    IN_MEMORY,
    PARTITION,
    ROW_KEYS,
    SCHEMA_VERSION,
    TABLES,
    VERSION_KEY,
    Columns,
)
from pipeline.storage.object_store import Storage
from pipeline.storage.parquet import _reader

_TYPES = {
    "string": pa.string(),
    "int32": pa.int32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us"),
    "list<string>": pa.list_(pa.string()),
    "list<int32>": pa.list_(pa.int32()),
}


def _schema(columns: Columns, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    return pa.schema(
        [pa.field(name, _TYPES[kind], nullable=not need) for name, (kind, need) in columns.items()],
        metadata=metadata,
    )


def _stored(columns: Columns) -> Columns:
    """The columns inside a file: those of the folders are not repeated."""
    return {name: kind for name, kind in columns.items() if name not in PARTITION}


_FILE_SCHEMAS = {
    table: _schema(_stored(ADDRESS) | columns, {VERSION_KEY: str(SCHEMA_VERSION)})
    for table, columns in TABLES.items()
}
_FILE_SCHEMAS["addresses"] = _schema(ADDRESS_ROWS, {VERSION_KEY: str(SCHEMA_VERSION)})
_READ_SCHEMAS = {table: _schema(ADDRESS | columns) for table, columns in TABLES.items()}
_READ_SCHEMAS["cells"] = _schema(ADDRESS | TABLES["cells"] | IN_MEMORY)


def shard_bytes(table: str, rows: TableRows, address: CellAddress) -> tuple[bytes, int]:
    """One cell's rows of a table as a Parquet file, sorted by their key, and their number.

    Raises:
        LakeError: A column is unknown, missing or ill-typed, or a row key repeats.
    """
    built = _build(table, rows, address)
    sink = pa.BufferOutputStream()
    pq.write_table(built, sink, compression="zstd")
    return sink.getvalue().to_pybytes(), built.num_rows


def address_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Addresses of a grid as a Parquet file, in the order given."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(list(rows), schema=_FILE_SCHEMAS["addresses"])
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_shard(data: bytes, table: str, where: str) -> dict[str, list[Any]]:
    """A shard's columns, after a check that this code knows its schema.

    Raises:
        CorruptShard: It is no whole Parquet file.
        LakeError: It is none of this table, or of a newer schema.
    """
    try:
        file = pq.ParquetFile(_reader(data))
        version = int((file.schema_arrow.metadata or {}).get(VERSION_KEY.encode(), b"0"))
        if version > SCHEMA_VERSION:
            raise LakeError(
                f"{where} has schema version {version}; this code reads up to {SCHEMA_VERSION}: "
                "update it, or use the version that wrote the lake"
            )
        read = file.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptShard(f"{where} is not a whole Parquet file ({error})") from None
    missing = [name for name in _FILE_SCHEMAS[table].names if name not in read.column_names]
    if version < 1 or missing:
        raise LakeError(
            f"{where} is not a {table} shard of a lake: schema version {version or 'missing'}, "
            f"missing columns {missing}"
        )
    return {name: read.column(name).to_pylist() for name in read.column_names}


def dataset(table: str, paths: Sequence[str], storage: Storage) -> Any:
    """Shards of a table at a location as one lazy Arrow dataset, the folders' columns included."""
    schema = _READ_SCHEMAS[table]
    if not paths:
        return schema.empty_table()
    # Imports pandas, where that is installed: half a second that no plan needs.
    import pyarrow.dataset as pads
    import pyarrow.fs as pafs

    filesystem, root = storage.filesystem()
    folders = pa.schema([(name, pa.string()) for name in PARTITION])
    return pads.dataset(
        [f"{root}/{path}" for path in paths],
        schema=schema,
        format="parquet",
        filesystem=pafs.LocalFileSystem() if storage.is_local else filesystem,
        partitioning=pads.partitioning(folders, flavor="hive"),
        partition_base_dir=root,
    )


def arrow_table(table: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows of a table that are already in memory, as an Arrow table."""
    return pa.Table.from_pylist(list(rows), schema=_READ_SCHEMAS[table])


def _build(table: str, rows: TableRows, address: CellAddress) -> pa.Table:
    """Checks rows against the schema and returns them sorted by their key."""
    where = f"cell {address.cell_key}, table {table}"
    columns = complete_columns(rows, TABLES[table], where)
    n_rows = len(next(iter(columns.values())))
    for name in _stored(ADDRESS):
        columns[name] = [getattr(address, name)] * n_rows
    schema = _FILE_SCHEMAS[table]
    arrays = [_array(columns[field.name], field, where) for field in schema]
    built = pa.Table.from_arrays(arrays, schema=schema)
    keys = ROW_KEYS[table]
    if keys and n_rows:
        seen: dict[tuple[Any, ...], int] = {}
        for i, key in enumerate(zip(*(columns[name] for name in keys), strict=True)):
            if key in seen:
                named = ", ".join(f"{name}={value}" for name, value in zip(keys, key, strict=True))
                raise LakeError(f"{where}: rows {seen[key]} and {i} are both {named}")
            seen[key] = i
        built = built.sort_by([(name, "ascending") for name in keys])
    return built


def _array(values: list[Any], field: pa.Field, where: str) -> pa.Array:
    if not field.nullable:
        for i, value in enumerate(values):
            if value is None:
                raise LakeError(f"{where}, row {i}: column {field.name!r} must have a value")
    if pa.types.is_floating(field.type) and field.name != "value":
        # An undefined score is null; of curves, those of earlier releases may diverge to NaN.
        values = [None if v is None or not math.isfinite(v) else v for v in values]
    if pa.types.is_integer(field.type):
        for i, value in enumerate(values):
            if value is not None and not hasattr(value, "__index__"):  # pyarrow would cut 0.5 to 0
                raise LakeError(
                    f"{where}, row {i}: column {field.name!r} expects {field.type}, got {value!r}"
                )
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        for i, value in enumerate(values):
            try:
                pa.array([value], type=field.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                raise LakeError(
                    f"{where}, row {i}: column {field.name!r} expects {field.type}, got {value!r}"
                ) from None
        raise
