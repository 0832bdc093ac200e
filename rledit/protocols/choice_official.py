"""The token-wise choice between new and old answer, as RLEdit's release scores CounterFact.

Not a protocol to compare papers by: it looks at single tokens, and truncates to the shorter answer
of the padded group. It is kept to reproduce the release's numbers (arXiv 2502.05759). As a protocol
every prompt is a group of its own, so that a score depends on nothing but the prompt.
"""

from __future__ import annotations

from rledit.protocols.reading import Reading


def score(reading: Reading) -> float | None:
    """Share of the shorter answer's positions that prefer the expected token; None: no rival."""
    return None if reading.preferred is None else float(reading.preferred.double().mean())


def agreement(reading: Reading, other: Reading) -> float | None:
    """Share of the shorter answer's positions where two models prefer alike; None: no rival."""
    if reading.preferred is None or other.preferred is None:
        return None
    return float((reading.preferred == other.preferred).double().mean())
