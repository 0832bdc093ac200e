"""What Python's garbage collector looks through in a process that works for Ray.

Whenever tasks or workers wait for room, Ray has every process collect its garbage each few seconds,
by a thread that holds the interpreter meanwhile. With torch and transformers imported that is half
a second of CPU each time, a tenth of all that a worker and its driver do. What is there before the
work begins is not garbage, so it is taken out of what is looked through.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """Take what is there now, modules and models, out of what collections look through.

    The first call in a process takes all of it, unseen. A later one collects first, which is quick
    by then, so that what a task left behind does not stay for good.
    """
    if gc.get_freeze_count():
        gc.collect()
    gc.freeze()


def collect_all() -> None:
    """Give back the memory of whatever nothing refers to, what was settled included."""
    gc.unfreeze()
    gc.collect()
