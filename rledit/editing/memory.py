"""Batches that are kept in memory: the ledger of a session that has no folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from rledit.editing.deltas import Delta
from rledit.editing.ledger import Batch, Change, LedgerError

_NOW = "in this session"


class MemoryLedger:
    """The batches of one loaded model, with the calls of `rledit.editing.ledger.Ledger`."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self._kept: dict[int, tuple[Delta, Mapping[str, Tensor]]] = {}

    @property
    def in_force(self) -> list[Batch]:
        """The batches that are in the model, in their order."""
        return [batch for batch in self.batches if batch.undone is None]

    def batch(self, number: int) -> Batch:
        """The batch of a number.

        Raises:
            LedgerError: There is none.
        """
        for batch in self.batches:
            if batch.number == number:
                return batch
        raise LedgerError(f"there is no batch {number}")

    def delta(self, batch: Batch) -> Delta:
        """What a batch changed."""
        return self._kept[batch.number][0]

    def deltas(self, batches: Sequence[Batch] | None = None) -> list[Delta]:
        """What some batches changed, in their order; None: those in force."""
        return [self.delta(batch) for batch in (self.in_force if batches is None else batches)]

    def state(self, batch: Batch) -> Mapping[str, Tensor]:
        """The running statistics of a batch's editor after it."""
        return self._kept[batch.number][1]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else writes here."""
        yield

    def append(
        self, record: Mapping[str, Any], delta: Delta, state: Mapping[str, Tensor] | None = None
    ) -> Batch:
        """Add a batch."""
        batch = Batch(number=len(self.batches) + 1, record=record, file="", hashes=("", ""))
        self._kept[batch.number] = (delta, state or {})
        self.batches.append(batch)
        return batch

    def rewrite(self, undone: Sequence[int], changes: Mapping[int, Change]) -> None:
        """Take batches back and give later ones other changes."""
        gone = {self.batch(number).number for number in undone}
        self.batches = [
            replace(batch, undone=batch.undone or _NOW) if batch.number in gone else batch
            for batch in self.batches
        ]
        for number, (record, delta, state) in changes.items():
            self._kept[number] = (delta, state)
            self.batches = [
                replace(b, record=record, recomputed=_NOW) if b.number == number else b
                for b in self.batches
            ]
