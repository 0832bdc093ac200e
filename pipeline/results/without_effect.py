"""Detection of cells whose edits changed nothing, for a remark in tables, reports and tracking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NO_EFFECT = "no effect"
NOISE = 1.0
"""Percentage points of efficacy that are no change: one answer in a hundred."""
NEGLIGIBLE = 0.01
"""Norm of the change of the edited matrices over their norm, below which it may be negligible."""
UNEDITED = "none"
STEPS = ("step", "initial_step")

Row = Mapping[str, Any]


def remark_of(
    editor: str, settings: Mapping[str, Any], scores: Iterable[Row], steps: Iterable[Row]
) -> str:
    """``no effect: step 1e-06`` where a cell's edits changed nothing, "" where they did.

    They changed nothing if, under every protocol, efficacy after the last edit is what it was
    before the first, unrelated prompts are answered as before, and the edited matrices are the same
    but for a negligible part. A cell of which one of these is not known is not judged, nor is the
    unedited model.

    Args:
        settings: The editor's, the step a number.
        scores: The cell's rows of the table `scores`, as `steps` are those of `steps`.
    """
    if editor == UNEDITED or not _weights_stayed(steps) or not _answers_stayed(scores):
        return ""
    step = next((settings[name] for name in STEPS if isinstance(settings.get(name), float)), None)
    return NO_EFFECT if step is None else f"{NO_EFFECT}: step {step:g}"


def _answers_stayed(scores: Iterable[Row]) -> bool:
    before: dict[str, Row] = {}
    after: dict[str, Row] = {}
    for row in scores:
        if row["checkpoint"] == 0:
            before[row["protocol"]] = row
        elif row["final"]:
            after[row["protocol"]] = row
    pairs = [(before.get(name), row) for name, row in after.items()]
    return bool(pairs) and all(first and _alike(first, last) for first, last in pairs)


def _alike(before: Row, after: Row) -> bool:
    for name in ("efficacy", "specificity_self"):
        first, last = before[name], after[name]
        if (first is None) != (last is None):
            return False
        if first is not None and abs(last - first) >= NOISE:
            return False
    return True


def _weights_stayed(steps: Iterable[Row]) -> bool:
    """Whether the last batch left the edited matrices within a negligible distance."""
    found: dict[str, tuple[int, float]] = {}
    for row in steps:
        if row["metric"] in ("weight_change_norm", "weight_norm"):
            latest = found.get(row["metric"], (-1, 0.0))
            found[row["metric"]] = max(latest, (row["step"], row["value"]))
    if len(found) < 2:
        return False
    change, norm = found["weight_change_norm"][1], found["weight_norm"][1]
    return change <= NEGLIGIBLE * norm


def warning_of(remark: str, calibration: Mapping[str, Any] | None = None) -> str:
    """The remark for the one who runs the cell, with what to do.

    Args:
        remark: What `remark_of` found.
        calibration: The record of the step's calibration, where the step was on `auto`.
    """
    said = f"{remark}; the edited model answers as the unedited one does: "
    if "step" not in remark:
        return f"{said}check its settings"
    if calibration is None:
        return f"{said}set it to auto, or to a larger number"
    known, pool = calibration["unedited"]["efficacy"], calibration.get("pool", "validation")
    reason = calibration.get("warning") or (
        f"calibrated on {calibration['edits']} edits of the {pool} pool, of which "
        f"the unedited model knows {known:.1f} %"
    )
    return (
        f"{said}{reason}; where the model knows the edits already there is nothing to change, "
        f"otherwise give {calibration['setting']} a larger number"
    )
