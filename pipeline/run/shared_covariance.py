"""Key covariance shared between users: export and import, one safetensors file per module.

A file carries what it was made from. It is taken where a grid asks for exactly that, and refused
where it does not: moments of another model look like the right ones.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.inputs.published_statistics import write_sum
from pipeline.plan.cache_names import covariance_folder, whole_file
from pipeline.plan.cell_data import read_corpus
from pipeline.plan.cell_keys import covariance_key_of
from pipeline.plan.cells import Cell
from pipeline.plan.checks import skip_reason
from pipeline.plan.imported import sums_corpus
from pipeline.run.cache import Cache
from pipeline.run.imported_statistics import read_covariance
from pipeline.run.resume import write_tensors
from pipeline.run.stages.covariance import covariance_fingerprints, load_sums
from rledit.locate.covariance import OUTPUT_GRADIENTS, CovarianceFingerprint

logger = logging.getLogger(__name__)


def export_covariance(cells: Sequence[Cell], cache: Cache, folder: Path) -> list[Path]:
    """Write every finished moment of a grid's cells, its shards added up.

    Returns:
        The files, ``KEY/LINEAR.safetensors``.

    Raises:
        ConfigError: No cell needs moments, or none is finished.
    """
    written: list[Path] = []
    for key, cell in _by_key(cells).items():
        for module in _finished(cell, cache):
            moment = load_sums(cell, cache, [module])[module]
            path = folder / key / f"{module}.safetensors"
            write_tensors(path, moment.tensors(), moment.metadata())
            written.append(path)
    if not written:
        raise ConfigError("no key covariance of this grid is finished; run the grid first")
    return written


def export_published(cells: Sequence[Cell], cache: Cache, folder: Path) -> list[Path]:
    """Write every finished moment of a grid's cells as the ROME family does.

    Returns:
        The files, ``MODEL/CORPUS_stats/LINEAR_PRECISION_mom2_DOCUMENTS.npz``.

    Raises:
        ConfigError: No cell needs moments, or none is finished.
    """
    written: dict[Path, None] = {}
    for cell in _by_key(cells).values():
        documents = read_corpus(cell).documents
        corpus = Path(cell.corpus or "world").name.partition(".")[0]
        checkpoint = cell.model.checkpoint or ""
        on_hub = checkpoint and not Path(checkpoint).exists()
        # Whole repositories' names are told apart by their owners, as in MEMIT.
        model = checkpoint.partition("@")[0].replace("/", "_") if on_hub else cell.model.name
        for module in _finished(cell, cache):
            if module.endswith(OUTPUT_GRADIENTS):  # these files have no place for them
                continue
            moment = load_sums(cell, cache, [module])[module]
            name = f"{module}_{moment.identity.dtype}_mom2_{documents}.npz"
            path = folder / model / f"{corpus}_stats" / name
            write_sum(path, moment, documents)
            written[path] = None
    if not written:
        raise ConfigError("no key covariance of this grid is finished; run the grid first")
    return list(written)


def import_covariance(cells: Sequence[Cell], cache: Cache, folder: Path) -> list[str]:
    """Put shared moments where the grid's cells will look for them.

    Args:
        cells: The cells.
        cache: Where they will look.
        folder: Files as `export_covariance` writes them, in any subfolder.

    Returns:
        The linear layers, one entry per file.

    Raises:
        CovarianceError: A file is broken, or was made from something that no cell asks for; names
            it and both hashes. Nothing has been taken then.
        ConfigError: There is no file, or no cell needs moments.
    """
    wanted = _by_key(cells)
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise ConfigError(f"there is no .safetensors file in {folder}")
    taken: list[tuple[Path, str, str]] = []
    for path in files:
        identity = read_covariance(path).identity
        taken.append((path, identity.module, _asked(path, identity, list(wanted.values()))))
    for path, module, name in taken:
        cache.storage.upload(path, name)
        logger.info("%s: key covariance of %s", path, module)
    return [module for _, module, _ in taken]


def _asked(path: Path, identity: CovarianceFingerprint, cells: Sequence[Cell]) -> str:
    """Where in the cache the cells look for a moment."""
    module = identity.module
    asked = {covariance_fingerprints(cell, [module])[module]: cell for cell in cells}
    if identity not in asked:
        read_covariance(path, next(iter(asked)))  # refuses it, naming both
    return whole_file(covariance_folder(asked[identity]), module)


def _by_key(cells: Sequence[Cell]) -> dict[str, Cell]:
    found = {
        covariance_key_of(cell): cell
        for cell in cells
        if sums_corpus(cell) and skip_reason(cell) is None
    }
    if not found:
        raise ConfigError("no editor of this grid needs key covariance")
    return found


def _finished(cell: Cell, cache: Cache) -> list[str]:
    """Linear layers of which the cache has the whole file or all shards."""
    folder = cache.storage.join(*covariance_folder(cell).split("/"))
    parts: dict[str, set[str]] = {}
    for name in folder.list():
        stem, _, part = name.removesuffix(".safetensors").rpartition(".")
        if name.endswith(".safetensors") and "/" not in name:
            parts.setdefault(stem, set()).add(part)
    shards = {f"shard{i}" for i in range(cell.statistics.shards)}
    return sorted(m for m, there in parts.items() if "whole" in there or shards <= there)
