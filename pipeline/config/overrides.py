"""Settings of the command line, `--set key.path=value`, put into the parsed YAML of a grid."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.config.stored_words import use_documented_path
from pipeline.errors import ConfigError
from rledit.names import nearest


def override(data: dict[str, Any], text: str) -> list[str]:
    """Apply one ``key.path=value`` to the parsed YAML; which of its words are old."""
    dotted, equals, value = text.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {text}: expected key.path=value")
    parts = use_documented_path(given := dotted.split("."))
    here: Any = data
    for i, part in enumerate(parts[:-1]):
        here = _descend(here, part, f"--set {text}: {'.'.join(parts[: i + 1])}")
    here_key: Any = parts[-1]
    if isinstance(here, list):
        here_key = _index(here, parts[-1], f"--set {text}")
    elif not isinstance(here, dict):
        raise ConfigError(f"--set {text}: {'.'.join(parts[:-1])} is a value, not a group")
    try:
        here[here_key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: {value!r} is not valid YAML: {error}") from None
    return [f"{a!r} is now {b!r} (--set)" for a, b in zip(given, parts, strict=True) if a != b]


def _descend(here: Any, part: str, where: str) -> Any:
    if isinstance(here, dict):
        if here.get(part) is None:  # absent, or a key without a value
            here[part] = {}
        return here[part]
    if isinstance(here, list):
        return here[_index(here, part, where)]
    raise ConfigError(f"{where}: is a value, not a group of settings")


def _index(entries: list[Any], part: str, where: str) -> int:
    """Place of an entry in a list, by number, name, editor or variant."""
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    for i, entry in enumerate(entries):
        if isinstance(entry, dict):
            name = entry.get("name", entry.get("preset"))
            names = {name, entry.get("variant"), entry.get("editor")} - {None, ""}
            label = f"{entry.get('editor')}/{entry.get('variant')}"
            if part in names or part == label:
                return i
    known = [
        str(e.get("name") or e.get("variant") or e.get("editor"))
        for e in entries
        if isinstance(e, dict)
    ]
    raise ConfigError(f"{where}: no such entry{nearest(part, known)}")
