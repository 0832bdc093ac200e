"""Versions of the code and of the libraries, recorded with every result.

A version is a record: no key and no fingerprint is made from it, so that a new version runs nothing
again that is done. It decides two things: a stream that other code has begun begins anew
(`pipeline.run.stages.edit`), and matrices that other code has kept are not exported as those of a
cell's rows (`pipeline.run.export`). Where a change to the code is meant to change the numbers of
given settings, it changes `pipeline.results.lake.key_versions.KEY_VERSION` or adds to the identity
of the cells concerned. Of all other changes plans say how many done cells older or newer code made
(`pipeline.plan.grid_plan.Plan.other_code`), and ``--rerun-other-code`` runs these again.
"""

from __future__ import annotations

import hashlib
import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "transformers", "ray", "mlflow", "pyarrow", "deepspeed", "numpy")

SOURCES = (
    "rledit",
    "pipeline/config",
    "pipeline/inputs",
    "pipeline/plan",
    "pipeline/results/lake",
    "pipeline/run",
    "pipeline/storage",
)
"""What a cell's numbers can depend on. Commands, submission, tables, figures, reports and estimates
read numbers or ask for them; tests, benchmarks and fault runs are no product."""
_BESIDE = ("pipeline/plan/estimate",)


@lru_cache(maxsize=1)
def code_version() -> str:
    """Package version and a hash of `SOURCES`.

    The hash needs no repository, so it is right on a cluster worker and with uncommitted changes.
    """
    root = Path(__file__).resolve().parents[2]
    return f"{metadata.version('rledit-at-scale')}+{sources_hash(root)}"


def sources_hash(root: Path) -> str:
    """Hash of the names and contents of the sources of a cell below a checkout, 12 hex digits."""
    total = hashlib.sha256()
    for package in SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith(_BESIDE):
                total.update(name.encode())
                total.update(path.read_bytes())
    return total.hexdigest()[:12]


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
