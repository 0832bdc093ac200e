"""Targets that a written answer cannot be, because it ends before they do.

Written answers have a stop: a line break, a number of tokens, in free answers a full stop. A target
that goes on behind it is never met, whatever the model knows: free text, as in AKEW and UnKE, has
to be scored otherwise.
"""

from __future__ import annotations

import re

FREE_WORDS = 50
"""Tokens of a free answer (see `rledit.free_answers`); a word has at least one."""

_LINE_BREAK = re.compile(r"[\r\n]\s*\S")
_FULL_STOP = re.compile(r"\.\s+\S|。\s*\S")


def outruns(target: str, most_words: int = FREE_WORDS, full_stop: bool = True) -> bool:
    """Whether a target goes on behind the end of a written answer.

    Args:
        target: The target.
        most_words: Tokens after which an answer ends. Words are counted, so that no tokenizer is
            needed: a target that is found has more tokens, one that is not may have more, too.
        full_stop: Whether a full stop ends an answer.
    """
    text = target.strip()
    stopped = _LINE_BREAK.search(text) or (full_stop and _FULL_STOP.search(text))
    return bool(stopped) or len(text.split()) > most_words
