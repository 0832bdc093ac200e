"""Invented names, composed of syllables, each used once in a world."""

from __future__ import annotations

import random
from collections.abc import Iterable

# fmt: off
_ONSETS = ("b", "br", "c", "d", "dr", "f", "fl", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s",
           "st", "t", "tr", "v", "w")
# fmt: on
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ia")
_ENDS = ("n", "r", "l", "s", "m", "th", "nd", "ck", "", "", "", "", "", "")


class NameMaker:
    """Coins capitalised names that never repeat and never equal a reserved word.

    Args:
        rng: Where the randomness comes from.
        reserved: Words of the world's sentences, which no name may equal in any case.
    """

    def __init__(self, rng: random.Random, reserved: Iterable[str] = ()) -> None:
        self._rng = rng
        self._used = {word.lower() for word in reserved}

    def coin(self) -> str:
        """A new name of two or three syllables, one token of a word-level tokenizer."""
        pick = self._rng.choice
        # Two and three syllables give some 10^8 names: a collision is drawn again.
        while True:
            syllables = self._rng.choice((2, 2, 3))
            name = "".join(pick(_ONSETS) + pick(_VOWELS) for _ in range(syllables)) + pick(_ENDS)
            if name not in self._used:
                self._used.add(name)
                return name.capitalize()

    def coin_many(self, n: int) -> tuple[str, ...]:
        """`n` new names."""
        return tuple(self.coin() for _ in range(n))
