"""Cells whose results are contained in those of another cell, which is run in their place.

A cell that is scored by more protocols, at more checkpoints or along a longer stream has the rows
of one that asks for less. The lake keeps no rows of the latter: ``contained/CELL_KEY.json`` names
the cell that has them, beside the identity and the address of the one that asks. It is shown as a
cell of its own, with the rows that it asks for and with the costs of the cell they are taken from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.results.lake.layout import as_json
from pipeline.results.lake.records import AskedRows, CellAddress, CellRecord
from pipeline.storage.object_store import Storage

FOLDER = "contained"
_READERS = 16
_TRAINING = ("train_", "validation_")  # metrics whose step counts training steps, not edits
OF_ALL_EDITS = frozenset({"fluency", "consistency"})
"""Measurements that take their prompts evenly from the whole stream, wherever they are taken."""
_OF_EDITS_MADE = ("portability_", "superseded_")  # before the first edit: of all the stream's


@dataclass(frozen=True, kw_only=True)
class ContainedCell:
    """A cell whose rows are among those of another.

    Attributes:
        address: Its own address and key.
        identity: Its own identity.
        n_edits: Edits in its stream.
        within: Key of the cell that has its rows.
    """

    address: CellAddress
    identity: Mapping[str, Any]
    n_edits: int
    within: str


def contained_name(cell_key: str) -> str:
    """The file that says in which cell another one is contained."""
    return f"{FOLDER}/{cell_key}.json"


def write_contained(cells: Iterable[ContainedCell], storage: Storage) -> None:
    """Keep where cells are contained, so that they can be shown."""
    for cell in cells:
        name = contained_name(cell.address.cell_key)
        storage.write_bytes(name, as_json(asdict(cell), cell.address).encode())


def contained_records(records: Sequence[CellRecord], storage: Storage) -> list[CellRecord]:
    """The cells that are contained in some of the records, but for those with rows of their own.

    Where the containing cell has failed or was skipped, so has what it contains. A cell that
    measures what a longer stream measures on other prompts is not contained in it, though an
    earlier version may have said so.
    """
    names = storage.list(FOLDER)
    if not names:
        return []
    with ThreadPoolExecutor(_READERS) as pool:  # of an object store, each is a round trip
        found = [cell for cell in pool.map(lambda name: _read(name, storage), names) if cell]
    whole: dict[str, CellRecord] = {}
    for record in records:
        known = whole.setdefault(record.address.cell_key, record)
        if record.done and not known.done:
            whole[record.address.cell_key] = record
    return [
        _part(whole[cell.within], cell)
        for cell in found
        if cell.within in whole
        and not (_longer(whole[cell.within], cell) and measured_of(cell.identity) & OF_ALL_EDITS)
        and not ((own := whole.get(cell.address.cell_key)) is not None and own.done)
    ]


def asked_rows(
    table: str, columns: Mapping[str, list[Any]], asked: AskedRows
) -> dict[str, list[Any]]:
    """The rows of the containing cell's shard that a contained one asks for."""
    at = columns["step" if table == "steps" else "checkpoint"]
    keep = [edits <= asked.n_edits for edits in at]
    if table == "steps":
        training = [str(metric).startswith(_TRAINING) for metric in columns["metric"]]
        keep = [one or other for one, other in zip(keep, training, strict=True)]
        if asked.first:  # of a longer stream
            foreign = [
                str(metric) in OF_ALL_EDITS
                or (edits < asked.first and str(metric).startswith(_OF_EDITS_MADE))
                for metric, edits in zip(columns["metric"], at, strict=True)
            ]
            keep = [one and not other for one, other in zip(keep, foreign, strict=True)]
    if "edit_index" in columns:  # of a longer stream, the unedited model is asked of all its edits
        own = [place < asked.n_edits for place in columns["edit_index"]]
        keep = [one and other for one, other in zip(keep, own, strict=True)]
    if table == "scores":
        keep = [one and edits >= asked.first for one, edits in zip(keep, at, strict=True)]
    if "protocol" in columns:
        known = [name in asked.protocols for name in columns["protocol"]]
        keep = [one and other for one, other in zip(keep, known, strict=True)]
    kept = {
        name: [value for value, wanted in zip(values, keep, strict=True) if wanted]
        for name, values in columns.items()
    }
    if "batch_index" in kept:  # the unedited model's rows may be of a stream of other batches
        kept["batch_index"] = [place // asked.batch_size for place in kept["edit_index"]]
    if "final" in kept:
        kept["final"] = [edits == asked.n_edits for edits in kept["n_edits"]]
    return kept


def measured_of(identity: Mapping[str, Any]) -> frozenset[str]:
    """The measurements of a cell's identity."""
    return frozenset(identity.get("measurements", {}).get("names", ()))


def _longer(record: CellRecord, cell: ContainedCell) -> bool:
    """Whether the containing cell has run along a longer stream."""
    whole = record.values.get("n_edits")
    return bool(whole and whole != cell.n_edits)


def _part(record: CellRecord, cell: ContainedCell) -> CellRecord:
    protocols = tuple(cell.identity["protocols"])
    values = dict(record.values)
    resolved = {**values["resolved"], **cell.identity, "contained_in": cell.within}
    whole = values.get("n_edits")
    longer = _longer(record, cell)
    if longer:  # of a longer stream: its seconds per edit, not its counts
        seconds = values.get("edit_seconds")
        values["edit_seconds"] = None if seconds is None else seconds * cell.n_edits / whole
        resolved.pop("partly_measured", None)
        values["n_contradicting"] = None
    values |= {
        "identity": cell.identity,
        "resolved": resolved,
        "protocols": list(protocols),
        "n_edits": cell.n_edits,
    }
    return replace(
        record,
        address=cell.address,
        files=record.files if record.done else {},
        values=values,
        asked=AskedRows(
            protocols=protocols,
            n_edits=cell.n_edits,
            batch_size=cell.address.batch_size,
            first=int(longer),
            within=cell.within,
        ),
    )


def _read(name: str, storage: Storage) -> ContainedCell | None:
    try:
        given = json.loads(storage.read_bytes(name))
    except FileNotFoundError:  # removed since it was listed
        return None
    return ContainedCell(**given | {"address": CellAddress(**given["address"])})
