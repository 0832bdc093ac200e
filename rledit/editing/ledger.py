"""The ledger: a folder that holds every batch of edits, so that each can be taken back exactly.

    OUT/ledger.json        the model's fingerprint, and the batches in their order
    OUT/batches/0001-….safetensors   what batch 1 changed, as exact terms, and the running
                                     statistics of its editor, for its next batch
    OUT/batches/0001-….json          its facts, settings and scores

`ledger.json` is the truth, and is replaced as a whole, last: a batch is in it or was never made.
Files that it does not name are what a killed process has left, and are removed by the next writer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from rledit.editing.deltas import Delta
from rledit.editing.files import PARTIAL, write_json, write_tensors
from rledit.errors import UserError

FORMAT = 1
MANIFEST = "ledger.json"
_BATCHES, _LOCK, _STATE = "batches", ".lock", "state:"


class LedgerError(UserError, ValueError):
    """A ledger that cannot be used, or not with this model; says what to do."""


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The model that a ledger belongs to.

    Attributes:
        fingerprint: Hash of its unedited weights, see `rledit.editing.host.fingerprint_of`.
        reference: Where it was loaded from, as the user named it; "" where nobody said.
        dtype: Type that it was loaded in.
        architecture: Its class and size, for people.
        prompting: How prompts are put to it, where not as they are.
    """

    fingerprint: str
    reference: str = ""
    dtype: str = ""
    architecture: str = ""
    prompting: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of a ledger.

    Attributes:
        number: Its number, counted from 1 and never given twice.
        record: Its facts, editor, settings and scores, as plain JSON.
        file: Name of its files, without suffix.
        hashes: sha256 of the file of tensors and of the record.
        undone: When it was taken back; None while it is in the model.
        recomputed: When its change was computed anew after an earlier batch was taken back.
    """

    number: int
    record: Mapping[str, Any] = field(hash=False)
    file: str
    hashes: tuple[str, str]
    undone: str | None = None
    recomputed: str | None = None

    @property
    def facts(self) -> list[dict[str, Any]]:
        """Its facts, as `rledit.editing.facts.plain_fact` writes them, each with its answers."""
        found: list[dict[str, Any]] = self.record["facts"]
        return found


Change = tuple[Mapping[str, Any], Delta, Mapping[str, Tensor]]
"""Record, change and state of a batch."""


class Ledger:
    """The batches of one model, in a folder.

    Args:
        folder: The folder of an existing ledger.

    Raises:
        LedgerError: There is none, or it is damaged; names the file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._load()

    @classmethod
    def create(cls, folder: str | Path, model: ModelRecord) -> Ledger:
        """A new ledger in an empty or absent folder.

        Raises:
            LedgerError: The folder has something in it.
        """
        place = Path(folder)
        cls.require_free(place)
        place.mkdir(parents=True, exist_ok=True)
        manifest = {"format": FORMAT, "model": asdict(model), "batches": []}
        write_json(place / MANIFEST, manifest)
        return cls(place)

    @staticmethod
    def require_free(folder: str | Path) -> None:
        """Refuse a place that no new ledger can have.

        Raises:
            LedgerError: It is a file, or a folder that has something in it.
        """
        place = Path(folder)
        if place.exists() and not place.is_dir():
            raise LedgerError(f"{place} is a file; give the ledger a folder of its own")
        left = [p.name for p in place.iterdir()] if place.is_dir() else []
        if any(name != _LOCK and not name.startswith(PARTIAL) for name in left):
            raise LedgerError(
                f"{place} holds {sorted(left)[0]!r} and no ledger; give the ledger a folder of its "
                "own"
            )

    def drop_if_empty(self) -> None:
        """Remove a ledger that has no batch, and its folder, where nothing else is in it; one that
        another process writes stays."""
        with suppress(LedgerError), self.writing():
            if self.batches:
                return
            for name in (MANIFEST, _BATCHES, _LOCK):
                with suppress(OSError):
                    path = self.folder / name
                    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()

    @staticmethod
    def is_at(folder: str | Path) -> bool:
        """Whether a folder is a ledger."""
        return (Path(folder) / MANIFEST).is_file()

    @property
    def in_force(self) -> list[Batch]:
        """The batches that are in the model, in their order."""
        return [batch for batch in self.batches if batch.undone is None]

    def batch(self, number: int) -> Batch:
        """The batch of a number.

        Raises:
            LedgerError: There is none; says which there are.
        """
        for batch in self.batches:
            if batch.number == number:
                return batch
        known = ", ".join(str(batch.number) for batch in self.batches) or "none"
        raise LedgerError(f"{self.folder} has no batch {number}; it has {known}")

    def delta(self, batch: Batch) -> Delta:
        """What a batch changed.

        Raises:
            LedgerError: Its file is not the one that was written.
        """
        tensors = self._tensors(batch)
        return Delta.of({k: v for k, v in tensors.items() if not k.startswith(_STATE)})

    def deltas(self, batches: Sequence[Batch] | None = None) -> list[Delta]:
        """What some batches changed, in the ledger's order; None: those in force."""
        chosen = self.in_force if batches is None else batches
        return [self.delta(batch) for batch in chosen]

    def state(self, batch: Batch) -> dict[str, Tensor]:
        """The running statistics of a batch's editor after it; empty where it keeps none."""
        tensors = self._tensors(batch)
        return {k.removeprefix(_STATE): v for k, v in tensors.items() if k.startswith(_STATE)}

    def require_model(self, fingerprint: str) -> None:
        """Refuse another model.

        Raises:
            LedgerError: The ledger's is another one.
        """
        if fingerprint != self.model.fingerprint:
            where = f" ({self.model.reference})" if self.model.reference else ""
            raise LedgerError(
                f"{self.folder} belongs to another model{where}: its unedited weights have the "
                f"fingerprint {self.model.fingerprint[:16]}, those of this model "
                f"{fingerprint[:16]}. Its changes would be noise here; give the model that the "
                f"ledger was made on, in {self.model.dtype}, or begin a new ledger (-o)"
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write alone, on the newest state; what a killed process has left is removed first.

        Raises:
            LedgerError: Another process writes.
        """
        try:
            opened = (self.folder / _LOCK).open("w")
        except FileNotFoundError:
            raise LedgerError(f"{self.folder} is gone: another process has removed it") from None
        with opened as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LedgerError(
                    f"{self.folder} is being written by another process; wait for its end"
                ) from None
            self._load()
            self._sweep()
            yield

    def append(
        self, record: Mapping[str, Any], delta: Delta, state: Mapping[str, Tensor] | None = None
    ) -> Batch:
        """Add a batch; from the end of this call on it is there, whatever happens.

        Args:
            record: Its facts, editor, settings and scores, as plain JSON.
            delta: What it changed.
            state: Running statistics of its editor after it.
        """
        number = max((batch.number for batch in self.batches), default=0) + 1
        batch = self._written(number, record, delta, state or {})
        self._commit([*self.batches, batch])
        return batch

    def rewrite(self, undone: Sequence[int], changes: Mapping[int, Change]) -> None:
        """Take batches back and give later ones other changes, in one step.

        Of batches that are taken back already, nothing changes.

        Args:
            undone: Batches to take back.
            changes: Batch → its record, change and state, computed anew.
        """
        now = _now()
        gone = {self.batch(number).number for number in undone}
        batches: list[Batch] = []
        for batch in self.batches:
            if batch.number in changes:
                batch = replace(self._written(batch.number, *changes[batch.number]), recomputed=now)
            elif batch.number in gone:
                batch = replace(batch, undone=batch.undone or now)
            batches.append(batch)
        self._commit(batches)

    def _written(
        self,
        number: int,
        record: Mapping[str, Any],
        delta: Delta,
        state: Mapping[str, Tensor],
    ) -> Batch:
        name = f"{number:04d}-{uuid.uuid4().hex[:8]}"
        place = self.folder / _BATCHES / name
        tensors = delta.tensors() | {f"{_STATE}{key}": value for key, value in state.items()}
        written = write_tensors(place.with_suffix(".safetensors"), tensors, {"batch": str(number)})
        plain = json.loads(json.dumps(record))
        hashes = (written, write_json(place.with_suffix(".json"), plain))
        return Batch(number=number, record=plain, file=name, hashes=hashes)

    def _commit(self, batches: Sequence[Batch]) -> None:
        entries = [{k: v for k, v in vars(b).items() if k != "record"} for b in batches]
        manifest = {"format": FORMAT, "model": asdict(self.model), "batches": entries}
        write_json(self.folder / MANIFEST, manifest)
        self.batches = list(batches)
        self._sweep()

    def _load(self) -> None:
        path = self.folder / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
            if manifest["format"] != FORMAT:
                raise LedgerError(
                    f"{path} has format {manifest['format']!r}, and this version reads {FORMAT}; "
                    "take the version that wrote it"
                )
            self.model = ModelRecord(**manifest["model"])
            entries = [dict(entry) for entry in manifest["batches"]]
        except FileNotFoundError:
            raise LedgerError(
                f"{self.folder} is no ledger: it has no {MANIFEST}; `rledit edit MODEL FACTS -o "
                f"{self.folder}` makes one"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, LedgerError):
                raise
            raise LedgerError(f"{path} is damaged ({error}); put a copy of it back") from None
        self.batches = [self._read(entry) for entry in entries]

    def _read(self, entry: dict[str, Any]) -> Batch:
        path = self.folder / _BATCHES / f"{entry['file']}.json"
        content = self._bytes(path, entry["hashes"][1])
        if not path.with_suffix(".safetensors").is_file():
            self._bytes(path.with_suffix(".safetensors"), "")
        return Batch(**{**entry, "hashes": tuple(entry["hashes"])}, record=json.loads(content))

    def _tensors(self, batch: Batch) -> dict[str, Tensor]:
        path = self.folder / _BATCHES / f"{batch.file}.safetensors"
        found: dict[str, Tensor] = load(self._bytes(path, batch.hashes[0]))
        return found

    def _bytes(self, path: Path, sha256: str) -> bytes:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise LedgerError(
                f"{path} is missing, which {MANIFEST} names; put a copy of it back"
            ) from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise LedgerError(
                f"{path} is not as it was written (its sha256 differs from the one in {MANIFEST}); "
                "put a copy of it back"
            )
        return content

    def _sweep(self) -> None:
        """Remove what the manifest does not name."""
        known = {f"{b.file}{end}" for b in self.batches for end in (".json", ".safetensors")}
        for folder in (self.folder, self.folder / _BATCHES):
            for path in folder.iterdir() if folder.is_dir() else ():
                stray = folder != self.folder and path.name not in known
                if path.is_file() and (stray or path.name.startswith(PARTIAL)):
                    with suppress(OSError):
                        os.unlink(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
