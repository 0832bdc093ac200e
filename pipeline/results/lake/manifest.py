"""Manifest rows of the lake: what they say of a cell and its shards, written and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import unquote

from pipeline.results.lake.key_versions import current_key
from pipeline.results.lake.layout import as_json, shard_name, utc
from pipeline.results.lake.records import CellAddress, CellRecord, CellResult, scale_of
from pipeline.results.lake.schemas import (
    ADDRESS,
    DATA_TABLES,
    JSON_COLUMNS,
    OPTIONAL_TABLES,
    PARTITION,
    TABLES,
)

Shards = Mapping[str, tuple[bytes, int]]  # by table: the shard's bytes and the number of rows


def shards_of(result: CellResult) -> Shards:
    """A cell's rows as shards."""
    from pipeline.results.lake.parquet import shard_bytes

    shards = {
        table: shard_bytes(table, getattr(result, table), result.address)
        for table in (*DATA_TABLES, *OPTIONAL_TABLES)
    }
    return {t: shard for t, shard in shards.items() if t in DATA_TABLES or shard[1]}


def files_of(shards: Shards, address: CellAddress) -> dict[str, dict[str, Any]]:
    """What the manifest says of shards: name, rows, bytes and sha256 by table."""
    files = {}
    for table, (data, rows) in shards.items():
        digest = hashlib.sha256(data).hexdigest()
        path = shard_name(table, address, digest)
        files[table] = {"path": path, "rows": rows, "bytes": len(data), "sha256": digest}
    return files


def manifest_bytes(result: CellResult, files: Mapping[str, Any]) -> bytes:
    """A cell's manifest row as Parquet."""
    from pipeline.results.lake.parquet import shard_bytes

    row: dict[str, Any] = {
        name: getattr(result, name) for name in TABLES["cells"] if name != "files"
    }
    row |= {name: as_json(row[name], result.address) for name in JSON_COLUMNS[:-1]}
    row |= {name: utc(row[name]) for name in ("started_at", "finished_at")}
    row["protocols"] = list(result.protocols)
    row["files"] = json.dumps(files, sort_keys=True)
    return shard_bytes("cells", [row], result.address)[0]


def record_of(columns: Mapping[str, list[Any]], name: str) -> CellRecord:
    """The cell of a manifest row.

    Args:
        columns: Of the row's file.
        name: The file's name, whose folders are part of the address.
    """
    values = {name: columns[name][0] for name in TABLES["cells"]}
    values |= {name: json.loads(values[name]) for name in JSON_COLUMNS}
    stored_key = columns["cell_key"][0]
    return CellRecord(
        address=_address(columns, name, current_key(stored_key, values["identity"])),
        stored_key=stored_key,
        status=values["status"],
        reason=values["reason"],
        files=values.pop("files"),
        values=values,
    )


def manifest_row(record: CellRecord) -> dict[str, Any]:
    """A cell as a row of the table `cells`, at the record's address."""
    row = dict(record.values) | {"files": dict(record.files)}
    row |= {name: json.dumps(row[name], sort_keys=True) for name in JSON_COLUMNS}
    row |= {"stored_key": record.stored_key}
    if record.asked is not None:
        asked = record.asked
        row |= {"asked_protocols": list(asked.protocols)}
        row |= {"asked_from": asked.first, "asked_edits": asked.n_edits}
    return asdict(record.address) | row | {"status": record.status, "reason": record.reason}


def _address(columns: Mapping[str, list[Any]], name: str, key: str) -> CellAddress:
    folders = dict(part.split("=", 1) for part in name.split("/")[1:-1])
    values: dict[str, Any] = {key: columns[key][0] for key in ADDRESS if key not in PARTITION}
    values |= {key: unquote(value) for key, value in folders.items()}
    # Lakes of earlier versions say `world` of checkpoints as well.
    model = json.loads(columns["identity"][0]).get("model")
    checkpoint = model.get("checkpoint") if isinstance(model, dict) else None
    return CellAddress(**values | {"cell_key": key, "scale": scale_of(values["scale"], checkpoint)})
