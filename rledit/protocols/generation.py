"""Protocol of free generation: what the model writes behind the prompt (arXiv 2502.11177).

Texts are compared as SQuAD's are (arXiv 1606.05250): lower case, without punctuation, articles and
superfluous space. Punctuation is that of every script, typographic quotation marks and the wide
marks of Chinese and Japanese among it, and texts are in Unicode's form NFC. What consists of
articles alone, as the choice "A" does, keeps them.
"""

from __future__ import annotations

import re
import string
import unicodedata

from rledit.occurrences import occurrences
from rledit.protocols.reading import Reading
from rledit.writing_systems import WIDE_PUNCTUATION, writes_spaces

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces, NFC.

    A text of nothing but articles keeps them, one of nothing but punctuation is as it is.
    """
    plain = _plain(text.lower())
    return _without_articles(plain) or plain or text.strip().lower()


def _plain(text: str) -> str:
    composed = WIDE_PUNCTUATION.sub("", unicodedata.normalize("NFC", text))
    kept = "".join(c for c in composed if not _is_punctuation(c))
    return " ".join(unicodedata.normalize("NFC", kept).split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _without_articles(plain: str) -> str:
    return " ".join(_ARTICLES.sub(" ", plain).split())


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

    Where words end is as in `rledit.occurrences`: a script without spaces between them, and Korean,
    whose particles follow a name, may stand on either side. An answer of such a script has no words
    to be whole. An answer that is an article, such as the choice "A", is looked for in a text with
    its articles: in capitals, where it is written in them, as every other sentence has an "a".
    """
    wanted, written = normalised(answer), normalised(text)
    if not _without_articles(wanted):
        capitals = answer.isupper()
        wanted, written = (_plain(t if capitals else t.lower()) for t in (answer, text))
    if not wanted:
        return float(not written)
    if not writes_spaces(wanted):
        return float(wanted in written)
    return float(bool(occurrences(written, wanted)))
