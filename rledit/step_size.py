"""Numbers that scale or bound an edit: the step, or `auto` until calibrated, and `z_clip`."""

from __future__ import annotations

import math
from typing import Any, Literal

from rledit.errors import UserError

AUTO: Literal["auto"] = "auto"
Step = float | Literal["auto"]
StepForm = Literal["log", "raw"]
"""How a network holds the step that it learns, see `rledit.hypernetwork.Hypernetwork`."""


class SettingError(UserError, ValueError):
    """A setting that cannot be used.

    Attributes:
        setting: Its name, so that whoever read it from a file can say where it stands.
    """

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting}: {message}")
        self.setting = setting


def check_step(config: Any, setting: str) -> None:
    """Refuse a step that would edit nothing, or backwards.

    Raises:
        SettingError: It is neither `auto` nor a finite number above 0.
    """
    value = getattr(config, setting)
    if value == AUTO:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise SettingError(
            setting, f"a step is a finite number above 0, or auto to calibrate it, not {value!r}"
        )


def check_initial_ridge(config: Any) -> None:
    """Refuse a ridge with which the equation need not have a solution.

    Raises:
        SettingError: It is not a finite number above 0.
    """
    value = config.initial_ridge
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise SettingError("initial_ridge", f"a ridge is a finite number above 0, not {value!r}")


def check_z_clip(config: Any) -> None:
    """Refuse a bound of normalised rows that is none.

    Raises:
        SettingError: It is not a finite number of at least 0.
    """
    _require_not_negative(config, "z_clip", "normalised entries are clamped to")


def check_past_keys(config: Any) -> None:
    """Refuse a weight of earlier batches' keys that is none.

    Raises:
        SettingError: It is not a finite number of at least 0.
    """
    _require_not_negative(config, "past_keys", "the keys of earlier batches count by")


def _require_not_negative(config: Any, setting: str, what: str) -> None:
    value = getattr(config, setting)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise SettingError(setting, f"{what} a finite number above 0, or 0 for none; not {value!r}")


def known_step(editor: str, config: Any, setting: str) -> float:
    """The step as a number.

    Raises:
        SettingError: It is still `auto`; says how it becomes a number.
    """
    value = getattr(config, setting)
    if value == AUTO:
        raise SettingError(
            setting,
            f"auto is not calibrated yet for editor {editor!r}; take the configuration that "
            "rledit.calibration.calibrate(model, editor, config, edits) returns, or give a number",
        )
    return float(value)
