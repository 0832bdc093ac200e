"""Builds the prompt that asks a judge about one answer, and reads the judge's reply.

The order of contents is that of WILD's judge (arXiv 2502.11177): the task, right answers with the
reason, wrong ones with the reason, the question with its gold target and the answer, and the
request for one letter. The wording is our own; a change of it is a new `PROMPT_VERSION`.
"""

from __future__ import annotations

PROMPT_VERSION = 1

_TASK = """\
You grade answers to questions. You are given a question, the gold target, which counts as the \
truth whatever you know yourself, and an answer. Decide whether the answer is correct or incorrect.

These are correct answers to the question "Which three rivers meet in Passau?" with the gold \
target "Danube, Inn and Ilz":
- "ilz, inn, danube"
- "The Danube meets the Inn and the Ilz there."
- "Danube, Inn and Ilz"
They are correct because they hold all that matters of the gold target and nothing that \
contradicts it. Order, letter case, punctuation and the form of a sentence do not matter.

These are incorrect answers to the same question:
- "The Danube and the Inn."
- "Danube, Inn, Ilz and Isar"
- "Danube, Inn and Ilz Danube, Inn and Ilz Danube, Inn and Ilz"
- ""
They are incorrect because they leave out a part that matters, add what contradicts the gold \
target, say the right thing over and over, or say nothing.

Now grade this answer.
"""
_REQUEST = """\
Is the answer correct or incorrect? Reply with one letter and nothing else:
A: correct
B: incorrect
"""
_RIGHT = frozenset({"A", "A.", "CORRECT"})
_WRONG = frozenset({"B", "B.", "INCORRECT"})


def judge_prompt(question: str, gold: str, answer: str) -> str:
    """The one message that asks about an answer."""
    given = f"Question: {question}\nGold target: {gold}\nAnswer: {answer}\n"
    return f"{_TASK}\n{given}\n{_REQUEST}"


def verdict_of(reply: str) -> bool | None:
    """Whether a reply says that the answer is correct; None where it says neither."""
    said = reply.strip()
    return True if said in _RIGHT else False if said in _WRONG else None
