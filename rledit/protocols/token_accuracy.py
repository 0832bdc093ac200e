"""Teacher-forced share of answer tokens whose most likely token is right.

Some papers call this "exact match"; it is not.
"""

from __future__ import annotations

from rledit.lazy_torch import Tensor
from rledit.protocols.reading import Reading


def score(reading: Reading) -> float:
    """Share of answer tokens predicted right, 0 to 1."""
    return _share(reading.predicted, reading.expected)


def agreement(reading: Reading, other: Reading) -> float:
    """Share of answer positions where two models predict the same token, 0 to 1."""
    return _share(reading.predicted, other.predicted)


def _share(a: Tensor, b: Tensor) -> float:
    return float((a == b).double().mean())
