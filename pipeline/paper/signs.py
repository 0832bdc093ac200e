"""Verdicts as signs in tables, with a legend and lettered reasons below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from string import ascii_lowercase

from pipeline.paper.verdicts import Kind, Verdict

SIGNS: Mapping[Kind, str] = {
    "reproduced": "=",
    "differs": "≠",
    "not comparable": "!",
    "not judged": "?",
    "no reference": "·",
}
_WITHIN = "within 3 points; 1.5 where others have reproduced it; at most 5 where it is at most 5"


class Signs:
    """Signs of a table's verdicts.

    The most frequent reason of a kind stands in the legend; each other one has a letter.

    Args:
        verdicts: All of the table, in order.
    """

    def __init__(self, verdicts: Iterable[Verdict]) -> None:
        reasons: dict[Kind, Counter[str]] = {}
        for verdict in verdicts:
            reasons.setdefault(verdict.kind, Counter())[verdict.reason] += 1
        self._usual = {kind: found.most_common(1)[0][0] for kind, found in reasons.items()}
        lettered = [
            (kind, reason)
            for kind, found in reasons.items()
            if kind not in ("reproduced", "differs")
            for reason in found
            if reason != self._usual[kind]
        ]
        self._letters = {which: _letter(n) for n, which in enumerate(lettered)}

    def sign(self, verdict: Verdict) -> str:
        """What stands in the table."""
        return SIGNS[verdict.kind] + self._letters.get((verdict.kind, verdict.reason), "")

    @property
    def legend(self) -> list[str]:
        """A line for the signs that occur, and one for each letter."""
        said = []
        for kind in (kind for kind in SIGNS if kind in self._usual):
            why = self._usual[kind]
            if kind in ("reproduced", "differs"):
                why = _WITHIN if kind == "reproduced" else ""
            elif any(lettered == kind for lettered, _ in self._letters):
                why = f"{why}; with a letter: below"
            said.append(f"{SIGNS[kind]} {kind}" + (f" ({why})" if why else ""))
        lines = [f"{'; '.join(said)}."] if said else []
        return lines + [f"{letter}: {reason}." for (_, reason), letter in self._letters.items()]


def _letter(n: int) -> str:
    first = ascii_lowercase[n // 26 - 1] if n >= 26 else ""
    return first + ascii_lowercase[n % 26]
