"""Cell specs as JSON beside the lake, so that a cell can be run again from its key."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from pipeline.config.build import build
from pipeline.config.yaml_location import Located
from pipeline.plan.cell_keys import identity_of, key_of
from pipeline.plan.cells import Cell
from pipeline.results.lake.key_versions import changed_fields, without_labels
from pipeline.results.lake.layout import LakeError
from pipeline.results.lake.records import CellRecord
from pipeline.storage.object_store import Storage
from pipeline.storage.redaction import redact_settings

_FOLDER = "entries"


def write_cell_spec(cell: Cell, lake: Storage) -> None:
    """Keep what the cell was made from: its grid's entries, its files' places among them."""
    entry = redact_settings(
        {"identity": identity_of(cell), "cell": asdict(replace(cell, known=""))}
    )
    lake.write_bytes(_name(key_of(cell)), json.dumps(entry, sort_keys=True).encode())


def read_cell_spec(record: CellRecord, lake: Storage) -> Cell:
    """The cell of a manifest row.

    Raises:
        LakeError: There is none, or the same entry gives another cell today.
    """
    key = record.address.cell_key
    try:
        entry: dict[str, Any] = json.loads(lake.read_bytes(_name(record.stored_key)))
    except FileNotFoundError:
        raise LakeError(
            f"{lake} does not say what cell {key} was made from (it was written by an earlier "
            "version); run its grid again with --rerun-other-code"
        ) from None
    given = entry["cell"]
    cell = build(Cell, given, (), Located.of_data(given, f"cell {key}"))
    if key_of(cell) != key and cell.model.preset is not None:
        # Earlier versions kept target modules of which a model with a preset made no use.
        without = replace(cell, model=replace(cell.model, modules=None))
        cell = without if key_of(without) == key else cell
    if key_of(cell) != key:
        changes = "; ".join(changed_fields(without_labels(entry["identity"]), identity_of(cell)))
        raise LakeError(f"cell {key} cannot be run again as it was: {changes}")
    return cell


def _name(key: str) -> str:
    return f"{_FOLDER}/{key}.json"
