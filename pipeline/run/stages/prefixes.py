"""Stage that fills a model's prefix store with the prompts of a stream, before anything is edited.

Whichever cells and trainings need prompts that the store lacks share them out among themselves,
length by length, each under a lease: none is run twice, and what is done when one of them is ended
is found by the next.
"""

from __future__ import annotations

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
from rledit.model import EditableModel
from rledit.prefix_store import PrefixStore
from rledit.tokenization import Sample


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
        claim=partial(_claimed, cache, name),
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
    lacking = len(store.prefixes.missing(samples))
    if not lacking:
        return
    total = len({sample.key for sample in samples})
    report("prefixes", total - lacking, total)
    for done in model.prefix_cache.store_ahead(samples):
        # Others may have put some between these two looks at the store.
        report("prefixes", min(total, total - lacking + done), total)


@contextmanager
def _claimed(cache: Cache, name: str, length: int) -> Iterator[bool]:
    """Whether the prompts of a length are this process's to record, for as long as it does."""
    # Two cells of one invocation are two holders: no run is named.
    lease = Lease(cache.storage, f"{name}/{length}".replace("/", "-"), "")
    try:
        held = lease.attempt()
        if held:
            _fetch(cache, name)
        yield held
    finally:
        lease.release()


def _fetch(cache: Cache, name: str) -> None:
    """Copy files of a store that only the object store has, where the cache is one."""
    if cache.storage.local_path() is None:
        for file in cache.storage.list(name):
            if file.endswith((".safetensors", ".json")):
                cache.file(file)
