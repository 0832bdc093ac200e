"""Removal of credentials from URIs, settings and messages, for everything that is logged or
stored."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"


_USER_INFO = re.compile(r"(?<=://)[^/\s\"']+@")


_QUERY_SECRET = re.compile(
    r"(?i)([?&;](?:[a-z0-9_-]*(?:password|passwd|secret|token|signature|api[_-]?key|access[_-]?key"
    r"|account[_-]?key)[a-z0-9_-]*|sig)=)[^&;\s\"']+"
)


_SECRET_SETTING = re.compile(
    r"(?i)(^|[_-])(password|passwd|secret|api[_-]?key|access[_-]?key|(auth|hub|hf|access)[_-]?token)$"
)


# GOOGLE_APPLICATION_CREDENTIALS is a path.
_SECRET_VARIABLE = re.compile(
    r"(^|_|^PG)(TOKEN|PASSWORD|PASSWD|PASS|SECRET|KEY|ACCESS_KEY_ID|CONNECTION_STRING"
    r"|(?<!APPLICATION_)CREDENTIALS?)$|_(PAT|SAS)$|^MYSQL_PWD$"
)


_SHORTEST_SECRET = 8  # shorter environment values ("true", "token") are not secrets


def names_a_secret(name: str) -> bool:
    """Whether an environment variable of that name holds a secret."""
    return _SECRET_VARIABLE.search(name) is not None


def redact(text: str) -> str:
    """Returns `text` (a URI, or a message that may contain some) without its secrets.

    Hidden are the user part of every URI, query fields such as `token=`, and the value of every
    environment variable whose name says that it is a secret (see `names_a_secret`).
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and names_a_secret(name):
            text = text.replace(value, HIDDEN)
    return _QUERY_SECRET.sub(rf"\g<1>{HIDDEN}", _USER_INFO.sub(f"{HIDDEN}@", text))


def redact_settings(settings: Any) -> Any:
    """Returns a copy of nested settings in which no secret is left.

    Strings go through `redact`; the value of a key named like a secret (`password`, `hub_token`,
    `api_key`, ...) is hidden whatever it is.
    """
    if isinstance(settings, Mapping):
        return {
            key: HIDDEN
            if value and isinstance(value, str) and _SECRET_SETTING.search(str(key))
            else redact_settings(value)
            for key, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return [redact_settings(value) for value in settings]
    return redact(settings) if isinstance(settings, str) else settings
