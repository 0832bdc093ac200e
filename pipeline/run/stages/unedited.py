"""Keeps what an unedited model says of a stream in the cache, so that each stream asks it once.

The first cell of a stream reads it: answers to unrelated prompts, scores of all edits before the
first one, what is measured then, and answers in words. Cells that differ in nothing but editor and
checkpoints, and have their first edited layer in common, find it in the cache.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.inputs.content_hashes import fingerprint, plain
from pipeline.plan.cell_keys import identity_of
from pipeline.plan.cells import Cell
from pipeline.plan.versions import code_version
from pipeline.run.cache import Cache
from pipeline.run.rank_group import Gang
from pipeline.storage.object_store import Storage
from rledit.lazy_torch import torch
from rledit.model import EditableModel
from rledit.protocols import Reading

logger = logging.getLogger(__name__)

UNEDITED = "unedited"
_OF_THE_EDITOR = (
    "editor", "editor_source", "settings", "calibration", "statistics", "checkpoints", "also_after",
    "training_seed", "validated",
)  # fmt: skip
_ROWS = ("scores", "steps", "answers", "free_answers")


class UneditedRecord:
    """The record of a cell's stream in the cache, if there is one.

    A gang asks its model itself: all its ranks would have to see the same file.

    Args:
        cell: The cell.
        model: Its model, with its prefix store.
        cache: Where the record lies.
        gang: The ranks that run the cell.

    Attributes:
        readings: What the model says to the unrelated prompts; None where there is no record.
        rows: Rows of the lake of the time before the first edit, by table; none without a record.
    """

    def __init__(self, cell: Cell, model: EditableModel, cache: Cache, gang: Gang) -> None:
        self._cache = cache
        self._asked = _asked(cell, model)
        self._name = f"{UNEDITED}/{fingerprint(self._asked)}.json"
        self._alone = not cell.resources.gang and gang.together.size == 1
        self.readings: list[Reading] | None = None
        self.rows: dict[str, Any] = {}
        path = cache.file(self._name) if self._alone else None
        if path is None:
            return
        try:
            found = json.loads(path.read_bytes())
            if found["asked"] != self._asked:
                raise ValueError("it is of another stream")
            self.readings = [_reading(one) for one in found["readings"]]
            self.rows = {name: list(found[name]) for name in _ROWS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not read (%s): the model is asked again", path, error)
            self.readings, self.rows = None, {}

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


def _asked(cell: Cell, model: EditableModel) -> dict[str, Any]:
    """Everything that the record depends on, as plain JSON."""
    identity = {k: v for k, v in identity_of(cell).items() if k not in _OF_THE_EDITOR}
    asked = identity | {
        "first_layer": model.prefix_cache.first_layer,
        "stored_prefixes": model.prefix_cache.store is not None,
        "answers": asdict(cell.answers),
        "gpu": cell.resources.gpus > 0,
        "code": code_version(),
    }
    found: dict[str, Any] = plain(asked)
    return found


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
