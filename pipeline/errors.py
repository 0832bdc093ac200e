"""The error of a configuration; the base of all errors that users can mend is `UserError`."""

from __future__ import annotations

from rledit.errors import UserError


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message says where, why and what would do."""
