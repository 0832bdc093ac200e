"""The registry of evaluation protocols: a new way to score an edit is an entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rledit.decoding import MAX_NEW_TOKENS
from rledit.free_answers import MOST_TOKENS
from rledit.names import look_up
from rledit.protocols import choice, choice_official, exact_match, generation, token_accuracy, wild
from rledit.protocols.reading import Reading

Ask = Literal["rival", "text", "free"]
"""What a protocol needs beside the expected answer: the rival's likelihood, a written text, a free
answer."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to judge an answer.

    Attributes:
        name: Name in configurations, rows and table headers.
        definition: What it means, for captions and reports.
        score: Reading → 0..1 against the expected answer; None where it is not defined.
        agreement: Two models' readings of one prompt, the edited one's first → 0..1, used for
            specificity against the unedited model; None where it is not defined.
        asks: What a reading has to hold beside the expected answer.
        judged: Whether its answers are kept for a judge that is asked after the run, by which alone
            they are scored.
    """

    name: str
    definition: str
    score: Callable[[Reading], float | None]
    agreement: Callable[[Reading, Reading], float | None]
    asks: frozenset[Ask] = frozenset()
    judged: bool = False


_ALL = (
    Protocol(
        name="token_accuracy",
        definition="teacher-forced; share of answer tokens whose argmax is right, mean over edits",
        score=token_accuracy.score,
        agreement=token_accuracy.agreement,
    ),
    Protocol(
        name="exact_match",
        definition="teacher-forced; share of edits whose answer tokens are all right",
        score=exact_match.score,
        agreement=exact_match.agreement,
    ),
    Protocol(
        name="choice",
        definition="mean NLL of the new answer below that of the old one, on unrelated prompts "
        "that of their own answer below that of the new one; chance is 50",
        score=choice.score,
        agreement=choice.agreement,
        asks=frozenset({"rival"}),
    ),
    Protocol(
        name="choice_official",
        definition="token by token, up to the shorter answer's end: share of positions where the "
        "new answer's logit exceeds the old one's (RLEdit's release)",
        score=choice_official.score,
        agreement=choice_official.agreement,
        asks=frozenset({"rival"}),
    ),
    Protocol(
        name="generation",
        definition="greedy decoding from the prompt alone to EOS, a line break or "
        f"{MAX_NEW_TOKENS} tokens; normalised text equals the answer",
        score=generation.score,
        agreement=generation.agreement,
        asks=frozenset({"text"}),
    ),
    Protocol(
        name="generation_contains",
        definition="greedy decoding from the prompt alone to EOS, a line break or "
        f"{MAX_NEW_TOKENS} tokens; normalised text contains the answer",
        score=generation.contains,
        agreement=generation.contains_agreement,
        asks=frozenset({"text"}),
    ),
    Protocol(
        name="wild",
        definition="free greedy answer from the prompt alone, to a full stop, a line break, EOS or "
        f"{MOST_TOKENS} tokens; normalised text equals the answer, Spe(self): same token ids as "
        "before",
        score=wild.score,
        agreement=wild.agreement,
        asks=frozenset({"free"}),
    ),
    Protocol(
        name="wild_judge",
        definition="the free answer of `wild`, graded by a language model as judge and not by a "
        "comparison of texts; unrelated prompts are not judged, Spe(self): same token ids as "
        "before",
        score=wild.not_yet,
        agreement=wild.agreement,
        asks=frozenset({"free"}),
        judged=True,
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: No such protocol; names the nearest.
    """
    return look_up(PROTOCOLS, name, "protocol")
