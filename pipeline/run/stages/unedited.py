"""Keeps what an unedited model says of a stream in the cache, so that each stream asks it once.

The first cell of a stream reads it: answers to all its prompts, scores of all edits before the
first one, what is measured then, and answers in words. Cells that differ in nothing but editor and
checkpoints, and have their first edited layer in common, find it in the cache.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.plan.cache_names import unedited_asked, unedited_name
from pipeline.plan.cells import Cell
from pipeline.run.cache import Cache
from pipeline.run.lease import POLL_SECONDS, Lease
from pipeline.run.rank_group import Gang
from pipeline.storage.object_store import Storage
from rledit.lazy_torch import torch
from rledit.protocols import Reading

logger = logging.getLogger(__name__)

_ROWS = ("scores", "steps", "answers", "free_answers")


class UneditedRecord:
    """The record of a cell's stream in the cache, if there is one.

    Of several cells that lack it at the same moment one asks the model, under a lease, and the
    others wait for what it finds. The lease is given back once the record is kept, or at the end of
    the context. A gang asks its model itself: all its ranks would have to see the same file.

    Args:
        cell: The cell.
        cache: Where the record lies.
        gang: The ranks that run the cell.

    Attributes:
        readings: What the model says to all prompts of the stream; None where there is no record.
        rows: Rows of the lake of the time before the first edit, by table; none without a record.
    """

    def __init__(self, cell: Cell, cache: Cache, gang: Gang) -> None:
        self._cache = cache
        self._path, self._asked = cell.path, unedited_asked(cell)
        self._name = unedited_name(cell)
        self._alone = not cell.resources.gang and gang.together.size == 1
        self._lease: Lease | None = None
        self.readings: list[Reading] | None = None
        self.rows: dict[str, Any] = {}

    def __enter__(self) -> UneditedRecord:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def find(self) -> list[Reading] | None:
        """The readings of the record; where there is none yet, it is this cell's to make.

        Another cell that is making it is waited for.
        """
        if not self._alone or self._read():
            return self.readings
        # Two cells of one invocation are two holders: no run is named.
        lease, said = Lease(self._cache.storage, self._name.replace("/", "-"), ""), False
        while not lease.attempt():
            if not said:
                logger.info("%s: another cell is asking the unedited model the same", self._path)
            said = True
            time.sleep(POLL_SECONDS)
        self._lease = lease
        if self._read():
            self._release()
        return self.readings

    def keep(self, readings: Sequence[Reading], rows: Mapping[str, Any]) -> None:
        """Keep what was found, unless it came from the record."""
        if not self._alone or self.readings is not None:
            return
        record = {
            "asked": self._asked,
            "readings": [_plain(reading) for reading in readings],
            **{name: rows[name] for name in _ROWS},
        }
        try:
            Storage(self._cache.folder).write_bytes(self._name, json.dumps(record).encode())
            self._cache.publish(self._name, replace=True)
        except OSError as error:
            logger.warning("what the unedited model says is not kept: %s", error)
        self._release()

    def _read(self) -> bool:
        """Look for the record; says whether it is there."""
        path = self._cache.file(self._name)
        if path is None:
            return False
        try:
            found = json.loads(path.read_bytes())
            if found["asked"] != self._asked:
                raise ValueError("it is of another stream")
            readings = [_reading(one) for one in found["readings"]]
            self.rows = {name: list(found[name]) for name in _ROWS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not read (%s): the model is asked again", path, error)
            return False
        self.readings = readings
        return True

    def _release(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None


def _plain(reading: Reading) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in vars(reading).items()
    }


def _reading(found: Mapping[str, Any]) -> Reading:
    preferred, tokens = found["preferred"], found["free_tokens"]
    return Reading(
        expected=torch.tensor(found["expected"], dtype=torch.long),
        predicted=torch.tensor(found["predicted"], dtype=torch.long),
        nll=found["nll"],
        rival_nll=found["rival_nll"],
        preferred=None if preferred is None else torch.tensor(preferred, dtype=torch.bool),
        answer=found["answer"],
        text=found["text"],
        free_text=found["free_text"],
        free_tokens=None if tokens is None else tuple(tokens),
    )
