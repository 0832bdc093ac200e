"""Keep modules and models out of Python's garbage collections, in every process of a run.

While a worker waits for room, Ray has every process collect its garbage about every ten seconds, by
a thread that holds Python's lock meanwhile; with torch and transformers imported that takes half a
second of CPU. Modules and models are no garbage, so they are frozen: no collection looks at them.
"""

from __future__ import annotations

import atexit
import gc

# Python 3.12 begins with some hundreds of frozen objects of its own.
_OF_PYTHON = 10_000
# DuckDB counts its objects when a process ends, and reports frozen ones as leaks.
atexit.register(gc.unfreeze)
_frozen = False


def freeze() -> None:
    """Leave all objects that there are now out of later collections.

    The first call in a process freezes garbage too, if there is any. A later one collects first,
    which is quick by then, so that what a task left behind does not stay for good. Where somebody
    else has frozen a process's objects (`gc.freeze`), nothing is done.
    """
    global _frozen
    if _frozen:
        gc.collect()
    elif gc.get_freeze_count() > _OF_PYTHON:
        return
    _frozen = True
    gc.freeze()


def collect_all() -> None:
    """Give back the memory of whatever nothing refers to, also of what `freeze` has frozen."""
    global _frozen
    if _frozen:
        gc.unfreeze()
        _frozen = False
    gc.collect()
