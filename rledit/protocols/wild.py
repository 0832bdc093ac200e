"""WILD (arXiv 2502.11177): free answers that end with the sentence, and locality by their tokens.

An answer is matched as SQuAD's are (`generation.normalised`), or kept for a judge that is asked
afterwards. Whether an unrelated prompt is answered as before is a question of identical token ids,
in both protocols.
"""

from __future__ import annotations

from rledit.protocols.generation import normalised
from rledit.protocols.reading import Reading


def score(reading: Reading) -> float | None:
    """1 if the free answer is the expected one, else 0; None where nothing was written down."""
    if reading.free_text is None:
        return None
    return float(matches(reading.free_text, reading.answer))


def matches(text: str, answer: str) -> bool:
    """Whether a text is an answer, case, punctuation and articles aside."""
    return normalised(text) == normalised(answer)


def agreement(reading: Reading, other: Reading) -> float | None:
    """1 if two models write the same tokens, else 0."""
    if reading.free_tokens is None or other.free_tokens is None:
        return None
    return float(reading.free_tokens == other.free_tokens)


def not_yet(_: Reading) -> None:
    """The score of an answer that only a judge can score."""
    return None
