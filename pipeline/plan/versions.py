"""Versions of the code and of the libraries, recorded with every result."""

from __future__ import annotations

import hashlib
import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "transformers", "ray", "mlflow", "pyarrow", "deepspeed", "numpy")


@lru_cache(maxsize=1)
def code_version() -> str:
    """Package version and a hash of the sources that run a cell.

    The hash needs no repository, so it is right on a cluster worker and with uncommitted changes.
    """
    root = Path(__file__).resolve().parents[2]
    total = hashlib.sha256()
    for package in ("rledit", "pipeline"):
        for path in sorted((root / package).rglob("*.py")):
            total.update(path.relative_to(root).as_posix().encode())
            total.update(path.read_bytes())
    return f"{metadata.version('rledit-at-scale')}+{total.hexdigest()[:12]}"


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Versions of the libraries, Python and the machine's architecture."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
