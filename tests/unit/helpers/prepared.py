"""Models of the synthetic world, trained once for all tests of a process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from pipeline.plan.cells import Cell
from pipeline.run.cache import Cache
from pipeline.run.reporting import silent
from pipeline.run.stages.prepare import prepare_model


def prepared_model(cell: Cell, place: Cache) -> Path:
    """The folder of a cell's model in a cache, as `prepare_model` leaves it there.

    A test may change what it gets: it is a copy. Tests of the training itself, and of checkpoints,
    call `prepare_model`.
    """
    trained = _trained()
    made = prepare_model(cell, trained, silent)
    shutil.copytree(made, place.folder / made.relative_to(trained.folder), dirs_exist_ok=True)
    return prepare_model(cell, place, silent)


@cache
def _trained() -> Cache:
    """A cache that goes with this process."""
    folder = tempfile.mkdtemp(prefix="rledit-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Cache(folder)
