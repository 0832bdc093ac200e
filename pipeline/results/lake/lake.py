"""The results lake: Parquet shards of cells and the protocol by which they are committed.

- One file per cell and table, `TABLE/model=…/editor=…/dataset=…/CELL_KEY.DIGEST.parquet`; a re-run
  replaces its own files and touches no others.
- A cell exists when its manifest, `cells/…/CELL_KEY.parquet`, says so. It is written last and
  names the other files with their rows, bytes and sha256. Shards without a manifest, and manifests
  whose shards are missing or cut short, are never read.
- A shard's name carries the digest of its content, so nothing is ever changed under its name: two
  writers of one cell cannot mix their shards, the later manifest decides between them, and until
  then the earlier one stands. Shards that no manifest names are removed after the commit.
- A cell is one whatever grids call it. Its rows are written under the names of whoever wrote it
  first, which `homes/CELL_KEY.json` keeps; `pipeline.results.lake.addresses` says where else they
  are shown. Cells of earlier versions are known by today's key
  (`pipeline.results.lake.key_versions`).
- A cell whose rows are among another's has none of its own: `pipeline.results.lake.contained`.
- Replies of judges lie beside the cells, in `judge_replies/` (`pipeline.results.judge.replies`).
- Everything here reads through the manifest. Plain readers may use
  `read_parquet('LAKE/scores/**/*.parquet', hive_partitioning=true, union_by_name=true)`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from typing import Any

from pipeline.results.lake.addresses import (
    Addresses,
    Place,
    chosen,
    claim_home,
    home_name,
    home_of,
    shown,
)
from pipeline.results.lake.contained import (
    ContainedCell,
    asked_rows,
    contained_name,
    contained_records,
    write_contained,
)
from pipeline.results.lake.layout import (
    SUFFIX,
    CorruptShard,
    LakeError,
    checked_files,
    file_fault,
    file_name,
    shard_belongs,
    shard_key,
    shard_name,
    tables_of,
)
from pipeline.results.lake.manifest import (
    files_of,
    manifest_bytes,
    manifest_row,
    record_of,
    shards_of,
)
from pipeline.results.lake.records import CellAddress, CellRecord, CellResult, Status
from pipeline.results.lake.schemas import (
    ADDRESS,
    DATA_TABLES,
    OPTIONAL_TABLES,
    PARTITION,
    TABLES,
)
from pipeline.storage.object_store import Storage
from pipeline.storage.redaction import redact

logger = logging.getLogger(__name__)

_WRITERS = 3  # of one cell at a time: more than ever happens
_READERS = 16  # threads that read manifest rows; on an object store each read is a round trip


class Lake:
    """Results at a location.

    Args:
        location: a path, a URI, or an opened `Storage`. It need not exist yet.
    """

    def __init__(self, location: str | Storage) -> None:
        self.storage = location if isinstance(location, Storage) else Storage(location)

    def __repr__(self) -> str:
        return f"Lake({str(self.storage)!r})"

    def exists(self) -> bool:
        """False if the lake is a local folder that is not there.

        An object store has no empty folders, so a lake there always exists, if without cells.
        """
        root = self.storage.local_path()
        return root is None or root.is_dir()

    # Writing -----------------------------------------------------------------------------------

    def commit(self, result: CellResult) -> CellRecord:
        """Writes the shards of a finished cell, then its manifest row.

        Raises:
            LakeError: a row has an unknown, missing or ill-typed column, a row key repeats, or
                there is no score to keep; nothing has been written then.
        """
        from pipeline.results.lake.parquet import read_shard

        if result.status != "done":
            raise LakeError(
                f"cell {result.address.cell_key} has status {result.status!r}; commit takes "
                "finished cells, record_failure the others"
            )
        shards = shards_of(result)
        if shards["scores"][1] == 0:
            raise LakeError(f"cell {result.address.cell_key} is done but has no row of scores")
        files = files_of(shards, result.address)
        manifest = manifest_bytes(result, files)
        if (home := claim_home(self.storage, result.address)) != result.address:
            result = replace(result, address=home)
            shards = shards_of(result)
            files = files_of(shards, home)
            manifest = manifest_bytes(result, files)
        name = shard_name("cells", home)
        record = record_of(read_shard(manifest, "cells", str(self.storage)), name)
        for _ in range(_WRITERS):
            for table, (data, _) in shards.items():
                self.storage.write_bytes(files[table]["path"], data)
            self.storage.write_bytes(name, manifest)
            # Another writer of the cell may have removed our shards before our manifest was there.
            if self._whole(record):
                self._remove_replaced(record)
                return record
        raise LakeError(
            f"cell {home.cell_key}: other writers remove its shards; end all runs of "
            f"grid {home.grid} but one"
        )

    def show(self, addresses: Iterable[CellAddress]) -> None:
        """Lets cells be shown at addresses, whoever ran them and whether or not they are there."""
        Addresses(self.storage).add(addresses)

    def contain(self, cells: Iterable[ContainedCell]) -> None:
        """Lets cells be shown with the rows of others that have theirs, there or not yet."""
        write_contained(cells, self.storage)

    def _whole(self, record: CellRecord) -> bool:
        sizes = {f["path"]: self.storage.size(f["path"]) for f in record.files.values()}
        return all(sizes[f["path"]] == f["bytes"] for f in record.files.values())

    def _remove_replaced(self, record: CellRecord) -> None:
        """Removes what an earlier attempt at the cell, or one cut short, has left behind."""
        if self.record(record.address) != record:
            return  # another writer was later: its shards are the ones that count
        for table in (*DATA_TABLES, *OPTIONAL_TABLES):
            folder = shard_name(table, record.address).rsplit("/", 1)[0]
            for name in self._siblings(folder, record.address.cell_key):
                if name != record.files.get(table, {}).get("path"):
                    logger.info("removing %s, which no manifest names (%s)", name, table)
                    self.storage.delete(name)

    def garbage_collect(self, grid: str) -> list[str]:
        """Removes shards of a grid's finished cells that no manifest row names; returns them.

        `commit` does so for its own cell, unless it is ended before it comes to it.
        """
        done = {r.stored_key: r for r in self.manifest(grid) if r.done}
        removed = []
        for table in (*DATA_TABLES, *OPTIONAL_TABLES):
            for name in self.storage.list(table):
                key = shard_key(name)
                if key not in done or name == done[key].files.get(table, {}).get("path"):
                    continue
                now = self.record(key)
                if now is not None and now.files == done[key].files:  # not written meanwhile
                    self.storage.delete(name)
                    removed.append(name)
        return removed

    def _siblings(self, folder: str, cell_key: str) -> list[str]:
        names = self.storage.starting(f"{folder}/{cell_key}")
        return [name for name in names if shard_belongs(name, cell_key)]

    def record_failure(
        self,
        address: CellAddress,
        reason: str,
        *,
        identity: Mapping[str, Any],
        code_version: str,
        status: Status = "failed",
        **rest: Any,
    ) -> CellRecord:
        """Records why a cell has no result; a later success replaces the row.

        A cell that is already done stays done: losing a race is no reason to lose its rows. Rows
        of the checkpoints it reached are kept beside the reason; a failure without rows that tells
        the same reason, or the beginning of it, leaves them there.

        Args:
            rest: any other field of `CellResult`, rows among them.
        """
        from pipeline.results.lake.parquet import read_shard

        known = self.record(address)
        if known is not None and known.done:
            logger.warning("cell %s is done; not recorded: %s", address.cell_key, redact(reason))
            return known
        if (
            known is not None
            and known.has_rows
            and "scores" not in rest
            and (known.reason or "").startswith(redact(reason))
        ):
            return known
        if status == "done":
            raise LakeError(f"cell {address.cell_key}: a failure cannot have status 'done'")
        result = CellResult(
            address=claim_home(self.storage, address),
            status=status,
            reason=redact(reason),
            identity=identity,
            code_version=code_version,
            **rest,
        )
        shards = shards_of(result) if result.scores else {}
        files = files_of(shards, result.address)
        for table, (data, _) in shards.items():
            self.storage.write_bytes(files[table]["path"], data)
        manifest, name = manifest_bytes(result, files), shard_name("cells", result.address)
        self.storage.write_bytes(name, manifest)
        named = {file["path"] for file in files.values()}
        for file in known.files.values() if known is not None else ():
            if file["path"] not in named:
                self.storage.delete(file["path"])
        return record_of(read_shard(manifest, "cells", str(self.storage)), name)

    def forget(self, *cell_keys: str) -> None:
        """Takes cells out of the lake: of each its manifest rows first, then its shards.

        Rows that an earlier version wrote of the same cell go with it. Of a cell that is contained
        in another, the other's rows stay.
        """
        stored: dict[str, list[CellRecord]] = {key: [] for key in cell_keys}
        for record in self.rows() if cell_keys else ():  # read once, however many go
            for key in {record.address.cell_key, record.stored_key} & stored.keys():
                if record.asked is None:
                    stored[key].append(record)
        for cell_key, records in stored.items():
            self.storage.delete(contained_name(cell_key))
            for key in dict.fromkeys((cell_key, *(record.stored_key for record in records))):
                for name in self._manifest_names(key):
                    self.storage.delete(name)
            for file in (file for record in records for file in record.files.values()):
                self.storage.delete(file["path"])
            self.storage.delete(home_name(cell_key))

    # Reading -----------------------------------------------------------------------------------

    def manifest(self, grid: str | None = None) -> list[CellRecord]:
        """Every cell of the lake, sorted by address: once, at the address in its own files.

        A manifest row that cannot be read is a crash's remainder: it is reported and skipped, so
        that the cell counts as missing and is run again. Of several rows of one cell, which lakes
        of earlier versions have, one counts (see `chosen`).

        Args:
            grid: Only the cells that are shown under this grid, each at every address it has there.
        """
        if grid is not None:
            return [record for record in self.shown() if record.address.grid == grid]
        return _sorted(chosen(self.rows()))

    def shown(self) -> list[CellRecord]:
        """The cells at all their addresses: one that several grids ask for, several times."""
        return _sorted(shown(self.rows(), self.addresses()))

    def addresses(self) -> dict[Place, CellAddress]:
        """What grids have asked for, by place; see `pipeline.results.lake.addresses`."""
        return Addresses(self.storage).read()

    def grids(self) -> list[str]:
        """Names of the grids that have cells here."""
        return sorted({record.address.grid for record in self.shown()})

    def rows(self) -> list[CellRecord]:
        """Every row of the manifest, and the cells that are contained in others.

        Rows that are one cell today and were several are several.
        """
        names = [name for name in self.storage.list("cells") if name.endswith(SUFFIX)]
        with ThreadPoolExecutor(_READERS) as pool:
            read = list(pool.map(self._read_record, names))
        # After the manifest, which a cell's shards precede.
        tables = (*DATA_TABLES, *OPTIONAL_TABLES)
        sizes = {name: size for table in tables for name, size in self.storage.sizes(table).items()}
        records = [
            # One whose shards are not there may have been written again since it was read.
            record if file_fault(record, sizes) is None else self._first([name])
            for name, record in zip(names, read, strict=True)
            if record is not None
        ]
        found = [record for record in records if record is not None]
        return found + contained_records(found, self.storage)

    def record(self, cell: str | CellAddress) -> CellRecord | None:
        """One cell of the manifest, or None. For many cells call `manifest` once.

        Args:
            cell: Its key, which on an object store lists the whole manifest, or its address, which
                is a handful of requests however large the lake is.
        """
        if isinstance(cell, CellAddress):
            return self._first([shard_name("cells", home_of(self.storage, cell))])
        found = self._first(self._manifest_names(cell))
        if found is not None:
            return found
        # An earlier version has written it under another key, or nobody has.
        return next((r for r in chosen(self.rows()) if r.address.cell_key == cell), None)

    def _first(self, names: Sequence[str]) -> CellRecord | None:
        """The first of some manifest rows that can be read, its files checked."""
        for name in names:
            record = self._read_record(name)
            if record is not None:
                sizes = {
                    file["path"]: size
                    for file in record.files.values()
                    for size in [self.storage.size(file["path"])]
                    if size is not None
                }
                return checked_files(record, sizes)
        return None

    def is_done(self, cell: str | CellAddress) -> bool:
        """True if the manifest says done and every file it lists is there at its full size."""
        record = self.record(cell)
        return record is not None and record.done

    def verify(self, cell_key: str) -> list[str]:
        """Recomputes the sha256 of a cell's files; returns what is wrong, [] if nothing is."""
        record = self.record(cell_key)
        if record is None:
            return [f"{self.storage}: no readable manifest row for cell {cell_key}"]
        if not record.done:
            return [f"cell {cell_key} is {record.status}: {record.reason}"]
        problems = []
        for table, file in record.files.items():
            digest = hashlib.sha256(self.storage.read_bytes(file["path"])).hexdigest()
            if digest != file["sha256"]:
                problems.append(
                    f"{file['path']}: the {table} shard has sha256 {digest}, the manifest says "
                    f"{file['sha256']}; run the cell again"
                )
        return problems

    def columns(self, table: str, record: CellRecord) -> dict[str, list[Any]]:
        """One cell's shard of `table` as columns, in the order of its row key.

        Of an optional table that the cell has no shard of: all columns, empty.

        Raises:
            LakeError: the cell is not done, or the shard is corrupt or of a newer schema.
        """
        from pipeline.results.lake.parquet import read_shard

        if not record.has_rows:
            raise LakeError(
                f"cell {record.address.cell_key} is {record.status} ({record.reason}); "
                "only done cells have rows, and failed ones those of what they reached"
            )
        if table in OPTIONAL_TABLES and table not in record.files:
            return {name: [] for name in ADDRESS | TABLES[table] if name not in PARTITION}
        path = record.files[table]["path"]
        data = self.storage.read_bytes(path)
        where = f"{self.storage}: {path}"
        if hashlib.sha256(data).hexdigest() != record.files[table]["sha256"]:
            raise LakeError(f"{where} is not what its manifest row describes; run the cell again")
        columns = read_shard(data, table, where)
        return columns if record.asked is None else asked_rows(table, columns, record.asked)

    def result(self, record: CellRecord, tables: Collection[str] | None = None) -> CellResult:
        """The cell as it was committed, with the rows of `tables` only.

        None stands for what tracking shows: scores, edits, answers, and the steps of a cell that
        was trained.
        """
        if tables is None:
            trained = ("steps",) if record.values.get("train_seconds") else ()
            tables = ("scores", "edits", "answers", *trained)
        tabular = (*DATA_TABLES, *OPTIONAL_TABLES)
        names = {field.name for field in fields(CellResult)} - {"address", *tabular}
        values = {name: record.values[name] for name in names if name in record.values}
        rows: dict[str, Any] = {}
        if record.done:
            for table in tables:
                read = self.columns(table, record)
                rows[table] = {name: read[name] for name in TABLES[table]}
        return CellResult(
            address=record.address,
            **{**values, "status": record.status, "reason": record.reason, **rows},
        )

    def dataset(self, table: str, records: Sequence[CellRecord]) -> Any:
        """The rows of `table` of all done cells among `records`, read lazily.

        Of scores, those that failed cells reached are among them, none of them final.

        Returns:
            An Arrow dataset or table (duckdb scans either) with the columns of the table, those of
            the folders included, as text whatever they look like. Rows name a cell by the key in
            its files; the table `cells` has that as `stored_key`.
        """
        from pipeline.results.lake.parquet import arrow_table, dataset

        if table == "cells":
            return arrow_table(table, [manifest_row(record) for record in records])
        kept = (r for r in records if (r.has_rows if table == "scores" else r.done))
        paths = dict.fromkeys(r.files[table]["path"] for r in kept if table in tables_of(r))
        return dataset(table, list(paths), self.storage)

    def _manifest_names(self, cell_key: str) -> list[str]:
        file = file_name(cell_key)
        local = self.storage.local_path("cells")
        if local is not None:
            found = local.glob(f"{'*/' * len(PARTITION)}{file}")
            return sorted(f"cells/{path.relative_to(local).as_posix()}" for path in found)
        return [name for name in self.storage.list("cells") if name.endswith(f"/{file}")]

    def _read_record(self, name: str) -> CellRecord | None:
        from pipeline.results.lake.parquet import read_shard

        try:
            data = self.storage.read_bytes(name)
            columns = read_shard(data, "cells", f"{self.storage}: {name}")
        except FileNotFoundError:  # removed since it was listed: the cell is being written again
            return None
        except CorruptShard as error:
            logger.warning("%s; the cell counts as missing", error)
            return None
        return record_of(columns, name)


def _sorted(records: Iterable[CellRecord]) -> list[CellRecord]:
    return sorted(records, key=lambda record: tuple(asdict(record.address).values()))
