"""Errors that a user can mend: commands and runs show them as one message without a trace."""

from __future__ import annotations

# By name: importing their modules would cost a command seconds.
_ANSWERS = frozenset(
    {
        "CalibrationError",
        "ConfigError",
        "CovarianceError",
        "DatasetError",
        "LakeError",
        "NonFiniteError",
        "QueryError",
        "ReportError",
        "SettingError",
        "StorageError",
        "SubmitError",
        "TableError",
        "Terminated",
        "TokenizationError",
        "TrackingError",
        "UneditableError",
    }
)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says where, why and what would do."""


def is_answer(error: BaseException) -> bool:
    """Whether an error's message tells a user what to do; anything else may be a bug."""
    return bool(_ANSWERS & {cls.__name__ for cls in type(error).__mro__})
