"""The gate before a judge: answers whose verdict is beyond doubt, so that nonsense is found first.

Of every question, the gold target itself is right; no answer, another target, and the gold target
three times over are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.results.judge.replies import AnswerToJudge

_QUESTIONS = (
    ("In which city does the river Tella reach the sea?", "Ardmore", "Kestrel Bay"),
    ("What is the mother tongue of Danielle Darrieux?", "English", "French"),
    ("The twin city of Cologne is", "Athens", "Lyon"),
    ("Who composed the opera Fidelio?", "Clara Schumann", "Ludwig van Beethoven"),
    ("What year was the bridge of Halden opened?", "1931", "1887"),
    ("Which sport does Mara Lindqvist play?", "ice hockey", "chess"),
)
MOST_MISTAKES = 1
"""Of one kind of case; a nonsense judge makes more in some kind, whatever it says."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An answer whose verdict is known.

    Attributes:
        kind: What kind of answer it is, for messages.
        right: Whether it is right.
    """

    kind: str
    asked: AnswerToJudge
    right: bool


def _cases() -> tuple[Case, ...]:
    found = []
    for question, gold, other in _QUESTIONS:
        answers = {
            "the gold target": (gold, True),
            "no answer": ("", False),
            "another target": (other, False),
            "the gold target three times over": (f"{gold} {gold} {gold}", False),
        }
        for kind, (answer, right) in answers.items():
            asked = AnswerToJudge(question=question, gold=gold, answer=answer)
            found.append(Case(kind=kind, asked=asked, right=right))
    return tuple(found)


CASES = _cases()


def gate_problem(
    replies: Mapping[AnswerToJudge, str], verdicts: Mapping[AnswerToJudge, bool | None]
) -> str | None:
    """Why a judge does not pass; None where it does.

    Args:
        replies: What it said to every case.
        verdicts: What that means.
    """
    failed: dict[str, list[str]] = {}
    for case in CASES:
        if verdicts[case.asked] is not case.right:
            failed.setdefault(case.kind, []).append(replies[case.asked])
    n = len(_QUESTIONS)
    wrong = [
        f"{kind}: {n - len(said)} of {n} as they should be, e.g. it says {said[0][:60]!r}"
        for kind, said in failed.items()
        if len(said) > MOST_MISTAKES
    ]
    return "; ".join(wrong) or None
