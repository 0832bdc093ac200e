"""Files of the cache that an earlier version has left, given the names they have today.

Before key version 2, names of trained networks, resume states and edited matrices were made from
keys that held labels (see `pipeline.results.lake.key_versions`). Those of the cells that are about
to run are moved: a copy under today's name first, then the old name goes. Calibrated steps, key
covariance and models never had labels in their names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.plan.cache_names import network_name, trained_name
from pipeline.plan.cell_keys import former_keys_of, key_of
from pipeline.plan.cells import Cell
from pipeline.storage.object_store import Storage

logger = logging.getLogger(__name__)

_FOLDERS = ("states", "trained", "edited")
_POINTER = "latest.json"  # of a resume state: what it names has to be there before


def migrate_cache(cells: Iterable[Cell], cache: str) -> list[str]:
    """Give the files that some cells have in a cache from an earlier version today's names.

    Args:
        cells: The cells.
        cache: URI of the cache.

    Returns:
        The new names.
    """
    storage = Storage(cache)
    names = [name for folder in _FOLDERS for name in storage.list(folder)]
    if not names:
        return []
    adopted: list[str] = []
    for old, new in dict(pair for cell in cells for pair in _renamed(cell)).items():
        if any(_below(name, new) for name in names):
            continue
        found = [name for name in names if _below(name, old)]
        for name in sorted(found, key=lambda name: name.endswith(_POINTER)):
            adopted.append(new + name.removeprefix(old))
            _copy(storage, name, adopted[-1])
        for name in found:
            storage.delete(name)
        if found and not old.endswith(".safetensors"):
            storage.drop_folder(old)
    if adopted:
        logger.info("%s: %d files of an earlier version are kept by today's keys", cache,
                    len(adopted))  # fmt: skip
    return adopted


def _renamed(cell: Cell) -> Iterator[tuple[str, str]]:
    """Former names of a cell's files and folders, each with today's."""
    key, network = former_keys_of(cell)
    yield f"states/{key}", f"states/{key_of(cell)}"
    yield f"edited/{key}.safetensors", f"edited/{key_of(cell)}.safetensors"
    if network is not None:
        old, new = network_name(cell.editor_name, network), trained_name(cell)
        yield old, new
        yield _progress(old), _progress(new)


def _progress(network: str) -> str:
    """The folder of the resume state of a network's training."""
    return f"{network.removesuffix('.safetensors')}.progress"


def _below(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}/")


def _copy(storage: Storage, old: str, new: str) -> None:
    path = storage.local_path(old)
    try:
        if path is not None:
            storage.upload(path, new)
            return
        with TemporaryDirectory() as folder:
            storage.download(old, Path(folder) / "copy")
            storage.upload(Path(folder) / "copy", new)
    except FileNotFoundError:  # another driver has moved it meanwhile
        logger.debug("%s: %s is gone", storage, old)
