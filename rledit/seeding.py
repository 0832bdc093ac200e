"""Random starts of networks: drawn on the CPU, by a seed, behind the caller's back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rledit.lazy_torch import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let what is drawn on the CPU inside the context follow from a seed alone.

    No generator of the caller's is moved. `torch.manual_seed` would seed those of every GPU as
    well, and to put these back it would have to be started.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
