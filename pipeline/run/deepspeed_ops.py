"""Compilation of DeepSpeed's operators: where they lie, with a lock and a time limit."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = Path(
    os.environ.get("TORCH_EXTENSIONS_DIR")
    or Path.home() / ".cache" / "rledit-at-scale" / "torch_extensions"
)


@contextmanager
def building(folder: Path = FOLDER) -> Iterator[None]:
    """Be the only process of this machine that compiles, or loads what another one compiled.

    A build that was killed leaves a file named ``lock``, on which every later one would wait for
    ever. The lock taken here dies with its process, so a ``lock`` found while holding it is stale.

    Args:
        folder: Where the operators lie.
    """
    # Ninja is installed beside the interpreter, which need not be on the path.
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "building").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for stale in folder.glob("*/lock"):
            logger.warning("removing %s, left by a build that was killed", stale)
            stale.unlink()
        yield
