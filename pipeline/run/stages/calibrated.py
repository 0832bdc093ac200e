"""Calibrated steps: their record in the cache, and settings with the step filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.plan.cache_names import calibration_name
from pipeline.plan.cells import Cell
from pipeline.run.cache import Cache


def require_calibrated(cell: Cell, cache: Cache) -> dict[str, Any]:
    """The record of the cell's calibration, which the task before has put into the cache.

    Raises:
        FileNotFoundError: It is not there.
    """
    path = cache.file(calibration_name(cell))
    if path is None:
        raise FileNotFoundError(
            f"{cache.storage} has no {calibration_name(cell)}, which has been calibrated; is that "
            "path the same storage on every node? Run the same command again to make what is "
            "missing"
        )
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def calibration_facts(cell: Cell, cache: Cache) -> dict[str, Any]:
    """What the results say of the calibration; nothing where the step was given."""
    return {"calibration": require_calibrated(cell, cache)} if cell.calibrates else {}


def settings_with_step(cell: Cell, cache: Cache) -> Any:
    """The editor's configuration, its step a number."""
    if not cell.calibrates:
        return cell.settings
    record: Mapping[str, Any] = require_calibrated(cell, cache)
    return replace(cell.settings, **{record["setting"]: record["step"]})
