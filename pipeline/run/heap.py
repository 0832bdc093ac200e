"""What Python's garbage collector looks through in a process that works for Ray.

Whenever tasks or workers wait for room, Ray has every process collect its garbage each few seconds,
by a thread that holds the interpreter meanwhile. With torch and transformers imported that is half
a second of CPU each time, a tenth of all that a worker and its driver do. What is there before the
work begins is not garbage, so it is taken out of what is looked through.
"""

from __future__ import annotations

import gc

# Python 3.12 begins with some hundreds of frozen objects of its own.
_OF_PYTHON = 10_000
_settled = False


def settle() -> None:
    """Take what is there now, modules and models, out of what collections look through.

    The first call in a process takes all of it, unseen. A later one collects first, which is quick
    by then, so that what a task left behind does not stay for good. Where somebody else has frozen
    a process's objects (`gc.freeze`), it stays as they have it.
    """
    global _settled
    if _settled:
        gc.collect()
    elif gc.get_freeze_count() > _OF_PYTHON:
        return
    _settled = True
    gc.freeze()


def collect_all() -> None:
    """Give back the memory of whatever nothing refers to, what was settled included."""
    global _settled
    if _settled:
        gc.unfreeze()
        _settled = False
    gc.collect()
