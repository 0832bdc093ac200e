"""Measures how fast a core of this machine multiplies matrices.

`rledit plan` and the display of a run estimate times from it: the cores of different machines
differ several times over.
"""

from __future__ import annotations

import time
from functools import lru_cache

SHAPE = (256, 576, 1536)
"""Rows, width and columns of the products: a small model's, with a full micro-batch."""
REPEATS = 2
TERA = 1e12


@lru_cache(maxsize=1)
def matrix_tflops() -> float:
    """1e12 operations a second of a core in float32, from a few products: hundredths of a second.

    One thread multiplies, and its processor time alone is counted: it is a core's rate on a machine
    where other programs run too, and the threads of NumPy that wait for work are busy at first.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    rows, width, columns = SHAPE
    left, right = np.full((rows, width), 0.5, "f4"), np.full((width, columns), 0.5, "f4")
    into = np.empty((rows, columns), "f4")
    with threadpool_limits(1):
        np.matmul(left, right, out=into)  # what is done once is not counted
        began = time.thread_time()
        for _ in range(REPEATS):
            np.matmul(left, right, out=into)
        spent = time.thread_time() - began
    return 2.0 * rows * width * columns * REPEATS / max(spent, 1e-3) / TERA
