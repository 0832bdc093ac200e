"""Stage that fills a model's prefix store with the prompts of a stream, before anything is edited.

Whichever cells and trainings need prompts that the store lacks share them out among themselves,
length by length, each under a lease: none is run twice, and what is done when one of them is ended
is found by the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.plan.cells import Cell
from pipeline.plan.prefixes import StoreChoice, prefix_folder, store_choice
from pipeline.run.cache import Cache
from pipeline.run.lease import Lease
from pipeline.run.reporting import Report
from pipeline.storage.redaction import redact
from rledit.model import EditableModel
from rledit.prefix_store import PrefixStore
from rledit.tokenization import Sample

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class CellStore:
    """A cell's prefix store, and where it lies.

    Attributes:
        prefixes: The store.
        name: Its folder in the cache.
        layer: The layer that its prefixes enter.
    """

    prefixes: PrefixStore
    name: str
    layer: int

    @property
    def facts(self) -> dict[str, Any]:
        """What results say of it: with a store, numbers have other last bits than without."""
        return {"layer": self.layer}


def open_store(
    cell: Cell, model: EditableModel, cache: Cache, choice: StoreChoice | None = None
) -> CellStore | None:
    """Let a model keep its prefixes in the cache, where the cell does that; else None.

    Args:
        cell: The cell.
        model: Its model.
        cache: Where the store lies.
        choice: Whether it does; None: as for its stream.
    """
    choice = store_choice(cell) if choice is None else choice
    if not choice.made:
        return None
    identity = model.prefix_cache.fingerprint()
    name = f"{prefix_folder(cell, choice.layer)}/{identity}"
    _fetch(cache, name)
    store = PrefixStore(
        cache.folder / name,
        identity,
        choice.budget,
        published=lambda path: cache.publish(f"{name}/{path.name}"),
        claim=partial(_claimed, cache, name, {}),
    )
    model.prefix_cache.keep_in(store)
    return CellStore(store, name, choice.layer)


def fill_store(
    store: CellStore, model: EditableModel, report: Report, samples: Sequence[Sample]
) -> None:
    """Run the prompts that a store lacks up to the first edited layer, together with other cells.

    Args:
        store: The store.
        model: Its model.
        report: Told how many prompts of these are done.
        samples: The prompts.
    """
    store.prefixes.refresh()
    lacking = store.prefixes.missing(samples)
    if not lacking or model.prefix_cache.n_bytes(lacking) > store.prefixes.room:
        return
    total = len({sample.key for sample in samples})
    there = total - len(lacking)
    report("prefixes", there, total)
    shown, looked = there, time.monotonic()
    for done in model.prefix_cache.store_ahead(lacking):
        if time.monotonic() - looked > LOOK_SECONDS:
            # What others have written is done, too, before it is their lengths' turn here.
            store.prefixes.refresh()
            shown = max(shown, total - len(store.prefixes.missing(lacking)))
            looked = time.monotonic()
        shown = max(shown, there + done)
        report("prefixes", shown, total)


@contextmanager
def _claimed(cache: Cache, name: str, waiting: dict[int, Lease], length: int) -> Iterator[bool]:
    """Whether the prompts of a length are this process's to record, for as long as it does.

    Args:
        waiting: Leases that were asked for in vain, by length: only one that has been looking for
            a while can tell that its holder is gone.

    Who cannot ask, as the cache is not reached, records them by itself.
    """
    if length not in waiting:
        # Two cells of one invocation are two holders: no run is named.
        waiting[length] = Lease(cache.storage, f"{name}/{length}".replace("/", "-"), "")
    lease = waiting[length]
    try:
        held = lease.attempt()
        if held:
            _fetch(cache, name)
    except Exception as error:  # drivers of object stores raise classes of their own
        held = True
        logger.warning(
            "prompts of %d tokens are run without asking who else does: %s",
            length,
            redact(str(error)),
        )
    if not held:
        yield False
        return
    del waiting[length]
    try:
        yield True
    finally:
        try:
            lease.release()
        except Exception as error:  # it expires
            logger.warning("a lease is not given back: %s", redact(str(error)))


def _fetch(cache: Cache, name: str) -> None:
    """Copy files of a store that only the object store has, where the cache is one."""
    if cache.storage.local_path() is None:
        for file in cache.storage.list(name):
            if file.endswith((".safetensors", ".json")):
                cache.file(file)
