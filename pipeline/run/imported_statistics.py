"""Published key covariance and projections of the cache, as cells use them.

A file carries the hash of the published one where a computed moment carries that of its corpus, so
that neither ever passes for the other. `pipeline.run.import_statistics` puts them there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.errors import ConfigError
from pipeline.plan.absent_imports import absent_imports
from pipeline.plan.cache_names import imported_file
from pipeline.plan.cell_keys import model_hash_of
from pipeline.plan.cells import Cell
from pipeline.plan.imported import IMPORTED, imported_of, projections_of
from pipeline.run.cache import Cache
from pipeline.storage.redaction import redact
from rledit.locate.covariance import CovarianceError, CovarianceFingerprint, KeyCovariance
from rledit.locate.nullspace import NullSpace

PROJECTION = "projection"
"""Name of the tensor of a projection's file."""


def imported_identity(cell: Cell, linear: str, known: str, dtype: Any) -> CovarianceFingerprint:
    """What a published file in the cache says it is made from."""
    return CovarianceFingerprint(
        model_hash=model_hash_of(cell),
        module=linear,
        corpus_hash=f"{IMPORTED}{known}",
        dtype=dtype,
    )


def require_imports(cells: Sequence[Cell], cache: str) -> None:
    """Refuse to begin where a grid names a file that has not been verified.

    Raises:
        ConfigError: Names every one, and how it gets into the cache.
    """
    if absent := absent_imports(cells, cache):
        place = redact(cache)
        lines = [f"{entry.text}, is not in the cache {place}; {entry.remedy}" for entry in absent]
        raise ConfigError("\n".join(lines))


def load_imported(cell: Cell, cache: Cache) -> dict[str, KeyCovariance]:
    """The imported moments of a cell's linears.

    Raises:
        CovarianceError: One is missing, or is no moment or another's.
    """
    found = {}
    for linear, known in imported_of(cell).items():
        path = _cached(cell, linear, known, cache)
        if PROJECTION in _names(path):
            raise CovarianceError(
                f"covariance.imported.{cell.model.name}.{linear}: file {known} holds a projection, "
                f"of which no key covariance can be had; name it under covariance.projections, "
                f"which AlphaEdit, NAS and DeltaEdit use, or leave {cell.label} out"
            )
        moment = read_covariance(path)
        imported_identity(cell, linear, known, moment.identity.dtype).require(moment.identity)
        found[linear] = moment
    return found


def load_projections(cell: Cell, cache: Cache) -> dict[str, NullSpace]:
    """The imported projections of a cell's linears.

    Raises:
        CovarianceError: One is missing, or is no projection or another's.
    """
    found = {}
    for linear, known in projections_of(cell).items():
        path = _cached(cell, linear, known, cache)
        if PROJECTION not in _names(path):
            raise CovarianceError(
                f"covariance.projections.{cell.model.name}.{linear}: file {known} holds key "
                "covariance and no projection; name it under covariance.imported"
            )
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            projection = file.get_tensor(PROJECTION)
        expected = asdict(imported_identity(cell, linear, known, "float32"))
        if any(facts.get(key) != value for key, value in expected.items()):
            raise CovarianceError(f"{path}: a projection of something else; import it again")
        found[linear] = NullSpace(projection, int(facts["rank"]))
    return found


def imported_metadata(cell: Cell, cache: Cache) -> dict[str, Any]:
    """What results say of a cell's imported statistics: numbers of documents are the files' claims.

    `files`: linear → the file's name, its hash, its tokens or rank, and what it was checked by.
    """
    files: dict[str, Any] = {}
    for linear, known in (projections_of(cell) or imported_of(cell)).items():
        with safe_open(_cached(cell, linear, known, cache), framework="pt") as file:
            facts = file.metadata() or {}
        said = {"file": facts["file"], "sha256": known, "checks": json.loads(facts["checks"])}
        if "rank" in facts:
            said["rank"] = int(facts["rank"])
        else:
            said |= {"tokens": int(facts["count"]), "documents": json.loads(facts["documents"])}
        files[linear] = said
    kind = "projections" if projections_of(cell) else "key covariance"
    return {"imported": kind, "files": files}


def read_covariance(path: Path, identity: CovarianceFingerprint | None = None) -> KeyCovariance:
    """The moment in a file of the cache.

    Raises:
        CovarianceError: It is broken, or made from something else than `identity`; names the file
            and both.
    """
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            moment = KeyCovariance.load(load_file(path), file.metadata() or {})
        if identity is not None:
            identity.require(moment.identity)
    except (SafetensorError, CovarianceError) as error:
        raise CovarianceError(f"{path}: {error}") from None
    return moment


def _cached(cell: Cell, linear: str, known: str, cache: Cache) -> Path:
    name = imported_file(model_hash_of(cell), linear, known)
    path = cache.file(name)
    if path is None:
        raise CovarianceError(f"{cache.storage} has no {name}; run rledit statistics import again")
    return path


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise CovarianceError(f"{path}: {error}; delete it, and import the file again") from None
