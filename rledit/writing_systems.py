"""Scripts of answers: whether a space sets the answer off (not in Chinese, Japanese or Thai).

Decided for every prompt and answer by the characters that meet. Scripts of East and South-East Asia
that put no space between words are told by the names that Unicode gives their characters; Korean
puts one, as Latin, Cyrillic, Arabic and the scripts of India do.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import Literal

AnswerSpace = Literal["auto", "always", "never"]
"""A space before an answer: by the script of its prompt and its own, always, or never."""

_NO_SPACES = frozenset({
    "CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "BOPOMOFO", "HALFWIDTH",
    "FULLWIDTH", "HENTAIGANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE",
    "BALINESE", "TAI", "TANGUT", "NUSHU",
})  # fmt: skip
_ENDS = ".!?:;\n"  # of a sentence
WIDE_PUNCTUATION = re.compile(
    "[\u3000-\u3004\u3008-\u3020\u3030\u303d\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)
"""Punctuation of East Asian text: its names are of many kinds, and none has a space beside it."""


@lru_cache(maxsize=4096)
def _kind(character: str) -> str:
    """`none` for a letter of a script without spaces, `wide` for its punctuation, `spaced` for any
    other letter, and "" for what has no say: digits, spaces, symbols, common punctuation."""
    if WIDE_PUNCTUATION.match(character):
        return "wide"
    category = unicodedata.category(character)
    if category[0] not in "LM" and category != "Nl":
        return ""
    name = unicodedata.name(character, "")
    if name.split(" ")[0] in _NO_SPACES and "HANGUL" not in name:
        return "none"
    return "spaced" if category[0] == "L" else ""


def writes_spaces(text: str) -> bool:
    """Whether no letter of a text is of a script without spaces between words."""
    return text.isascii() or all(_kind(c) not in ("none", "wide") for c in text)


def space_between(prompt: str, answer: str) -> bool:
    """Whether a space stands between a prompt and its answer, as people write their scripts.

    None stands behind or before wide punctuation (``：``, ``「``), nor between letters of a script
    without spaces. Where such a script meets another one, the prompt's own habit decides: it is
    Chinese with a Latin name, or English with a Chinese one, by the space that it puts between.
    """
    if prompt.isascii() and answer.isascii():
        return True
    left = next(filter(None, map(_kind, reversed(prompt))), "")
    right = next(filter(None, map(_kind, answer)), "")
    if left == "wide" or right == "wide":
        return False
    if left == "none":
        return right != "none" and _quotes_at_end(prompt)
    if right != "none":
        return True
    return bool(left) and (writes_spaces(prompt) or _sets_off(prompt))


def _quotes_at_end(prompt: str) -> bool:
    """Whether the last run of letters without spaces is quoted in a sentence of words.

    That is so where a space, and no end of a sentence, stands between it and a word before it.
    """
    end = next(i for i in range(len(prompt), 0, -1) if _kind(prompt[i - 1]) == "none")
    start = end
    while start and _kind(prompt[start - 1]) in ("none", "wide"):
        start -= 1
    before = prompt[:start]
    word = next((i for i in range(start, 0, -1) if _kind(before[i - 1])), 0)
    gap = before[word:]
    set_off = any(map(str.isspace, gap)) and not any(c in _ENDS for c in gap)
    return word > 0 and set_off and _kind(before[word - 1]) == "spaced"


def _sets_off(prompt: str) -> bool:
    """Whether a space stands anywhere between a spaced word and a letter without spaces."""
    words = prompt.split()
    return any(
        _kind(one[-1]) == "spaced" and _kind(other[0]) == "none" for one, other in pairwise(words)
    )
