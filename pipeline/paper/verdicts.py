"""The verdict on one figure of ours, given the published one.

Order matters: what cannot be compared is never judged, and what is contested or second-hand is
shown and never judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.paper.references import SCORE_METRICS, Reference

Kind = Literal["reproduced", "differs", "not comparable", "not judged", "no reference"]
TOLERANCE = 3.0  # points
CALIBRATION_TOLERANCE = 1.5
COLLAPSED = 5.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is said of a figure, and why."""

    kind: Kind
    reason: str = ""


def judge(
    ours: float | None,
    reference: Reference | None,
    *,
    missing: str = "not run",
    departures: Sequence[str] = (),
) -> Verdict:
    """Compare a figure with a published one; either is None where there is none.

    Args:
        missing: Why there is no figure of ours, where there is none.
        departures: Why ours was not measured as the published one: other weights, data, stream,
            settings or protocol. They are said where nothing is published, too.

    Returns:
        ``reproduced`` within 3 points (1.5 for calibration cells; for a published figure of at
        most 5, which is a collapsed model, any of at most 5), ``differs`` beyond.
    """
    why = missing if ours is None else "; ".join(departures)
    if reference is None:
        return Verdict(kind="no reference", reason=why or "nothing is published for it")
    if why:
        return Verdict(kind="not comparable", reason=why)
    assert ours is not None, "without a figure there is a reason"
    if reference.contested:
        return Verdict(kind="not judged", reason=f"contested: {reference.contested}")
    if reference.confidence != "primary":
        return Verdict(kind="not judged", reason="quoted by another source")
    if reference.metric not in SCORE_METRICS:
        return Verdict(kind="not judged", reason=_unjudged(reference.metric))
    if reference.value <= COLLAPSED:
        return Verdict(kind="reproduced" if ours <= COLLAPSED else "differs", reason="collapsed")
    tolerance = CALIBRATION_TOLERANCE if reference.calibration else TOLERANCE
    # Published figures have two decimals: a difference of exactly the tolerance is within it.
    within = abs(ours - reference.value) <= tolerance + 1e-9
    reason = f"±{tolerance:g}"
    return Verdict(kind="reproduced" if within else "differs", reason=reason)


def _unjudged(metric: str) -> str:
    """Why a figure other than a score is not judged."""
    if metric in ("Fluency", "Consistency"):
        return "known not to reproduce between labs"
    if metric.endswith("per_edit") or metric.endswith("incl_setup"):
        return "seconds depend on the machine"
    return "no tolerance is agreed on for it"
