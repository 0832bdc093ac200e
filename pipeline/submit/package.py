"""The working directory of a job: the code and the submission, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pipeline.submit.submission import FILE, Submission, SubmitError

PACKAGES = ("rledit", "pipeline", "jobs")
DISTRIBUTION = "rledit-at-scale"
LARGEST_BYTES = 20 << 20
# What lies beside somebody's code, but is no code. Our own packages have a `results` that is.
_BESIDE_CODE = frozenset({".git", ".venv", "venv", "results", "build", "dist", "node_modules"})


@dataclass(frozen=True, kw_only=True)
class Package:
    """A staged working directory: how many files it has, and their size."""

    folder: Path
    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.files} files, {self.bytes / 1e6:.1f} MB"


def stage(submission: Submission, folder: Path, include: Sequence[Path] = ()) -> Package:
    """Copy the code, what else is asked for, and the submission into an empty folder.

    Args:
        include: More files or folders, such as the module of an editor of one's own; they lie at
            the top, so a module is imported by its name.

    Raises:
        SubmitError: A path does not exist or stands in the way of another, or the whole is so
            large that data must be in it.
    """
    root = Path(__file__).resolve().parents[2]
    for source in (*(root / name for name in PACKAGES), *(path.resolve() for path in include)):
        target = folder / source.name
        if not source.exists():
            raise SubmitError(f"--include {source}: there is no such file or folder")
        if target.exists():
            raise SubmitError(f"--include {source}: the job has a {source.name!r} already")
        if source.is_dir():
            own = source.parent == root
            shutil.copytree(source, target, ignore=_derived if own else _no_code)
        else:
            shutil.copy2(source, target)
    _describe(folder)
    submission.write(folder / FILE)
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sum(sizes.values()) > LARGEST_BYTES:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:5]
        named = ", ".join(f"{p.relative_to(folder)} ({sizes[p] / 1e6:.1f} MB)" for p in largest)
        raise SubmitError(
            f"the job's working directory would hold {sum(sizes.values()) / 1e6:.0f} MB, more than "
            f"{LARGEST_BYTES / 1e6:.0f}: data belongs on storage that all nodes see. The largest "
            f"files are {named}"
        )
    return Package(folder=folder, files=len(sizes), bytes=sum(sizes.values()))


def _derived(_: str, names: list[str]) -> set[str]:
    endings = (".pyc", "__pycache__", "_cache", ".egg-info")
    return {name for name in names if name.endswith(endings)}


def _no_code(folder: str, names: list[str]) -> set[str]:
    return _derived(folder, names) | _BESIDE_CODE.intersection(names)


def _describe(folder: Path) -> None:
    """Let the nodes know the version although nothing is installed there."""
    version = metadata.version(DISTRIBUTION)
    described = folder / f"{DISTRIBUTION.replace('-', '_')}-{version}.dist-info"
    described.mkdir()
    text = f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version}\n"
    (described / "METADATA").write_text(text)
