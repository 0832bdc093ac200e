"""Descriptions of the evaluation protocols, for table captions and reports.

A number without its protocol is not comparable: the same edited model differs by tens of points
from one definition to another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rledit.protocols import PROTOCOLS

DEFINITIONS = {name: protocol.definition for name, protocol in PROTOCOLS.items()}

SCORE_DEFINITIONS = {
    "efficacy": ("Eff", "on the edited prompt"),
    "generalization": ("Gen", "on its rephrasings"),
    "specificity": ("Spe", "on unrelated prompts, against the dataset's answer"),
    "specificity_self": ("Spe(self)", "on unrelated prompts, against the unedited model's answer"),
}


def definition(protocol: str) -> str:
    """The meaning of a protocol, or "" for one that this list does not know."""
    return DEFINITIONS.get(protocol, "")


def sorted_protocols(protocols: Iterable[str]) -> list[str]:
    """Distinct protocols in the order of `DEFINITIONS`, others after them by name."""
    order = list(DEFINITIONS)
    return sorted(set(protocols), key=lambda p: (order.index(p) if p in order else len(order), p))


def shown_protocol(rows: Sequence[Mapping[str, Any]], preferred: Mapping[str, str]) -> str | None:
    """The protocol that a dataset's figures show; None where nothing was scored."""
    there = sorted_protocols(row["protocol"] for row in rows if row["protocol"] is not None)
    wanted = [preferred[row["dataset"]] for row in rows if row["dataset"] in preferred]
    return next((name for name in [*wanted, *there] if name in there), None)
