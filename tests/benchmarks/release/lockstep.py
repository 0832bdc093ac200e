"""Contenders in turn, piece by piece, so that whatever else the machine does meets all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.release.contenders import Job


@dataclass(frozen=True)
class Piece:
    """Work that is timed as one.

    Attributes:
        name: What its seconds are added to.
        work: The work.
    """

    name: str
    work: Callable[[], object]


Seconds = dict[str, dict[str, list[float]]]
"""Contender → name of pieces → processor seconds of each."""


def in_turn(jobs: Sequence[Job], parts: Sequence[str]) -> Seconds:
    """Run the jobs part by part; within a part, their pieces spread over it evenly.

    Returns:
        Processor seconds of this process, all threads together.
    """
    seconds: Seconds = {job.name: {} for job in jobs}
    for part in parts:
        places: list[tuple[float, int, str, Piece]] = []
        for order, job in enumerate(jobs):
            pieces = job.part(part)
            places += [
                ((i + 0.5) / len(pieces), order, job.name, piece) for i, piece in enumerate(pieces)
            ]
        gc.collect()
        for _, _, name, piece in sorted(places, key=lambda place: place[:2]):
            began = time.process_time()
            piece.work()
            spent = time.process_time() - began
            seconds[name].setdefault(piece.name, []).append(spent)
    return seconds
