"""Errors that a user can mend: one class, so that commands show them as one message without a
trace."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says where, why and what would do."""
