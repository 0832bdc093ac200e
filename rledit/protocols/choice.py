"""The choice between new and old answer by mean likelihood (arXiv 2202.05262: ES, PS, NS).

The answer that should be there wins where its mean negative log-likelihood per token is smaller
than the rival's; a tie is a loss. On the edit and its rephrases the new answer should be there and
the old one is the rival; on unrelated prompts their own answer should, and the new one is the
rival. Chance is 50 %.
"""

from __future__ import annotations

from rledit.protocols.reading import Reading


def score(reading: Reading) -> float | None:
    """1 if the expected answer is likelier than its rival, else 0; None without a rival."""
    if reading.rival_nll is None:
        return None
    return float(reading.nll < reading.rival_nll)


def agreement(reading: Reading, other: Reading) -> float | None:
    """1 if two models make the same choice, else 0; None without a rival."""
    one, two = score(reading), score(other)
    return None if one is None or two is None else float(one == two)
