"""Protocol of free generation: what the model writes behind the prompt (arXiv 2502.11177).

Texts are compared as SQuAD's are (arXiv 1606.05250): lower case, without punctuation, articles and
superfluous space; the wide punctuation of Chinese and Japanese goes with the rest.
"""

from __future__ import annotations

import re
import string

from rledit.protocols.reading import Reading
from rledit.writing_systems import WIDE_PUNCTUATION, writes_spaces

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces; the text itself if none is left."""
    plain = WIDE_PUNCTUATION.sub("", text.lower().translate(_PUNCTUATION))
    bare = " ".join(_ARTICLES.sub(" ", plain).split())
    return bare or text.strip().lower()


def score(reading: Reading) -> float | None:
    """1 if the written text is the answer, else 0; None where nothing was written down."""
    if reading.text is None:
        return None
    return float(normalised(reading.text) == normalised(reading.answer))


def agreement(reading: Reading, other: Reading) -> float | None:
    """1 if two models write the same, else 0."""
    if reading.text is None or other.text is None:
        return None
    return float(normalised(reading.text) == normalised(other.text))


def contains(reading: Reading) -> float | None:
    """1 if the written text contains the answer as whole words, else 0."""
    return None if reading.text is None else within(reading.answer, reading.text)


def contains_agreement(reading: Reading, other: Reading) -> float | None:
    """1 if the first model's text contains all that the second, the unedited one, wrote."""
    if reading.text is None or other.text is None:
        return None
    return within(other.text, reading.text)


def within(answer: str, text: str) -> float:
    """1 if a text contains an answer as whole words, both normalised, else 0.

    An answer of a script without spaces between words has no words to be whole.
    """
    if not writes_spaces(answer):
        return float(normalised(answer) in normalised(text))
    return float(f" {normalised(answer)} " in f" {normalised(text)} ")
