"""The registry of evaluation protocols. A number without its protocol is not comparable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rledit.metrics import exact_match, token_accuracy
from rledit.metrics.reading import Reading, read
from rledit.names import look_up


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to judge an answer.

    Attributes:
        name: Name in configurations, rows and table headers.
        definition: What it means, for captions and reports.
        score: Reading → 0..1 against the expected answer.
        agreement: Two models' readings of one prompt → 0..1, used for specificity against the
            unedited model.
    """

    name: str
    definition: str
    score: Callable[[Reading], float]
    agreement: Callable[[Reading, Reading], float]


PROTOCOLS: dict[str, Protocol] = {
    "token_accuracy": Protocol(
        name="token_accuracy",
        definition="teacher-forced; share of answer tokens whose argmax is right, mean over edits",
        score=token_accuracy.score,
        agreement=token_accuracy.agreement,
    ),
    "exact_match": Protocol(
        name="exact_match",
        definition="teacher-forced; share of edits whose answer tokens are all right",
        score=exact_match.score,
        agreement=exact_match.agreement,
    ),
}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: No such protocol; names the nearest.
    """
    return look_up(PROTOCOLS, name, "protocol")


__all__ = ["PROTOCOLS", "Protocol", "Reading", "protocol", "read"]
