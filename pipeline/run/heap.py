"""What Python's garbage collector looks through in a process that works for Ray.

Whenever tasks or workers wait for room, Ray has every process collect its garbage each few seconds,
by a thread that holds the interpreter meanwhile. With torch and transformers imported that is half
a second of CPU each time, a tenth of all that a worker and its driver do. What is there before the
work begins is not garbage, so it is taken out of what is looked through.
"""

from __future__ import annotations

import gc


def begin() -> None:
    """Give back what the task before left, for no later collection would see it once settled."""
    if gc.get_freeze_count():
        gc.collect()


def settle() -> None:
    """Take what is there now, modules and models, out of what collections look through."""
    gc.freeze()


def collect_all() -> None:
    """Give back the memory of whatever nothing refers to, what was settled included."""
    gc.unfreeze()
    gc.collect()
