"""Addresses: under which names of grid, model, dataset and variant a lake's results are shown.

A cell is kept once, under its key, however many grids ask for it. Each grid that is run writes the
addresses of its cells as a Parquet file, `addresses/GRID/DIGEST.parquet`, one row per address with
the key of the cell that stands there and since when. A file holds all addresses of its grid that
its writer knew; a grid's files together, the latest row of each address, are what counts, so
several writers lose nothing. Plain readers may join
`read_parquet('LAKE/addresses/*/*.parquet')` to any table by `cell_key`.

Its rows are written under the names of whoever wrote it first, which `homes/CELL_KEY.json` keeps.
Rows of a lake without such files, or written before there were any, are shown at the address in
their own columns. That also holds beside addresses of other grids, unless another cell has taken
the place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from pipeline.results.lake.layout import SUFFIX, CorruptShard, utc
from pipeline.results.lake.records import CellAddress, CellRecord
from pipeline.results.lake.schemas import ADDRESS
from pipeline.storage.object_store import Storage

logger = logging.getLogger(__name__)

FOLDER = "addresses"
_READERS = 16
_LABELS = ("grid", "variant", "model", "dataset", "scale")
_LOOKS, _LOOK_SECONDS = 5, 0.2  # at a home that another process may be writing right now
_WRITERS = 5  # of one grid's addresses at a time: more than ever happens

Place = tuple[Any, ...]  # an address without the cell's key
Row = Mapping[str, Any]


def place_of(address: CellAddress) -> Place:
    """Where an address is, whichever cell stands there."""
    return tuple(value for name, value in asdict(address).items() if name != "cell_key")


class Addresses:
    """The addresses that grids have written into a lake.

    Args:
        storage: The lake.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self) -> dict[Place, CellAddress]:
        """The address at every place, with the key of the cell that stands there."""
        rows = [row for rows in self._files(FOLDER).values() for row in rows]
        return {place: _address(row) for place, row in _latest(rows).items()}

    def add(self, addresses: Iterable[CellAddress]) -> None:
        """Let cells be shown at addresses; what stood at one of them before no longer is.

        Nothing is written where all of it is known. Files that a new one repeats are removed after
        it is whole.
        """
        by_grid: dict[str, list[CellAddress]] = {}
        for address in addresses:
            by_grid.setdefault(address.grid, []).append(address)
        for grid, own in by_grid.items():
            self._add(f"{FOLDER}/{quote(grid, safe='')}", own)

    def _add(self, folder: str, addresses: Sequence[CellAddress]) -> None:
        from pipeline.results.lake.parquet import address_bytes

        files = self._files(folder)
        known = _latest([row for rows in files.values() for row in rows])
        now = utc(datetime.now(UTC))
        new = {
            place: asdict(address) | {"since": now}
            for address in addresses
            if (place := place_of(address)) not in known
            or known[place]["cell_key"] != address.cell_key
        }
        if not new:
            return
        data = address_bytes([row for _, row in sorted((known | new).items(), key=_by_text)])
        name = f"{folder}/{hashlib.sha256(data).hexdigest()[:16]}{SUFFIX}"
        self._storage.write_bytes(name, data)
        for file in files:
            if file != name:
                self._storage.delete(file)

    def _files(self, folder: str) -> dict[str, list[Row]]:
        """The rows of every file of a folder and those below it."""
        found: dict[str, list[Row]] = {}
        for _ in range(_WRITERS):
            names = [name for name in self._storage.list(folder) if name.endswith(SUFFIX)]
            with ThreadPoolExecutor(_READERS) as pool:  # of an object store, each is a round trip
                rows = zip(names, pool.map(self._rows, names), strict=True)
            found = {name: own for name, own in rows if own is not None}
            if len(found) == len(names):
                break  # otherwise a writer has put a file in place of one since it was listed
        return found

    def _rows(self, name: str) -> list[Row] | None:
        from pipeline.results.lake.parquet import read_shard

        try:
            data = self._storage.read_bytes(name)
        except FileNotFoundError:
            return None
        try:
            columns = read_shard(data, "addresses", f"{self._storage}: {name}")
        except CorruptShard as error:
            logger.warning("%s; run the grid again to show its cells under all their names", error)
            return []
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def home_name(cell_key: str) -> str:
    """The file that keeps a cell's home."""
    return f"homes/{cell_key}.json"


def claim_home(storage: Storage, address: CellAddress) -> CellAddress:
    """The address in a cell's own files: that of its first writer, which may be this one.

    With one home for a key, writers that call the cell by other names write one manifest row.
    """
    labels = json.dumps({label: getattr(address, label) for label in _LABELS}, sort_keys=True)
    name = home_name(address.cell_key)
    try:
        storage.create_bytes(name, labels.encode())
    except OSError:  # some mounts cannot create a file only where there is none
        if not storage.exists(name):
            storage.write_bytes(name, labels.encode())
    for _ in range(_LOOKS):
        if (home := _home(storage, address)) is not None:
            return home
        time.sleep(_LOOK_SECONDS)
    storage.write_bytes(name, labels.encode())
    return home_of(storage, address)


def home_of(storage: Storage, address: CellAddress) -> CellAddress:
    """The address in a cell's own files; the given one where nobody has written it whole."""
    return _home(storage, address) or address


def _home(storage: Storage, address: CellAddress) -> CellAddress | None:
    """The home of a cell, the given address where there is none.

    None where it is half-written: that is under way, or left by a process that died as it wrote.
    """
    try:
        return replace(address, **json.loads(storage.read_bytes(home_name(address.cell_key))))
    except FileNotFoundError:
        return address
    except ValueError:
        return None


def shown(
    records: Sequence[CellRecord], addresses: Mapping[Place, CellAddress]
) -> list[CellRecord]:
    """The records at all their addresses, one each.

    Args:
        records: Of every cell, those of earlier versions that are one cell today among them.
        addresses: As `Addresses.read` gives them.
    """
    by_key: dict[str, list[CellAddress]] = {}
    for address in addresses.values():
        by_key.setdefault(address.cell_key, []).append(address)
    for record in records:
        own = record.address
        taken = addresses.get(place_of(own), own)
        if taken.cell_key == own.cell_key:
            by_key.setdefault(own.cell_key, []).append(own)
    return [
        replace(record, address=address)
        for record in chosen(records)
        for address in dict.fromkeys(by_key.get(record.address.cell_key, ()))
    ]


def chosen(records: Sequence[CellRecord]) -> list[CellRecord]:
    """One record for every key: a done cell before others, today's form before earlier ones, then
    the one that was finished first."""
    best: dict[str, CellRecord] = {}
    for record in ranked(records):
        best.setdefault(record.address.cell_key, record)
    return list(best.values())


def doubles(records: Iterable[CellRecord]) -> dict[str, list[CellRecord]]:
    """Finished rows that are one cell today, by its key; the one that counts comes first.

    Versions before key version 2 ran a cell once for each of its names.
    """
    by_key: dict[str, list[CellRecord]] = {}
    for record in ranked(records):
        if record.done:
            by_key.setdefault(record.address.cell_key, []).append(record)
    return {key: rows for key, rows in by_key.items() if len(rows) > 1}


def ranked(records: Iterable[CellRecord]) -> list[CellRecord]:
    """Records in the order in which `chosen` prefers them."""

    def rank(record: CellRecord) -> tuple[Any, ...]:
        key, ended = record.address.cell_key, record.values.get("finished_at")
        place = tuple(map(str, place_of(record.address)))
        return (not record.done, record.stored_key != key, str(ended), record.stored_key, place)

    return sorted(records, key=rank)


def _latest(rows: Iterable[Row]) -> dict[Place, Row]:
    found: dict[Place, Row] = {}
    for row in sorted(rows, key=lambda row: (row["since"], row["cell_key"])):
        found[place_of(_address(row))] = row
    return found


def _address(row: Row) -> CellAddress:
    return CellAddress(**{name: row[name] for name in ADDRESS})


def _by_text(item: tuple[Place, Row]) -> str:
    return str(item[0])
