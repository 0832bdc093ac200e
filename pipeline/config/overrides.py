"""Settings of the command line, `--set key.path=value`, put into the parsed YAML of a grid."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.config.stored_words import use_documented_path
from pipeline.errors import ConfigError
from rledit.names import nearest


def override(data: dict[str, Any], text: str) -> list[str]:
    """Apply one ``key.path=value`` to the parsed YAML; which of its words are old.

    A name of the path may have dots in it, as Mistral-7B-v0.3 has, if there is an entry of it.
    """
    dotted, equals, value = text.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {text}: expected key.path=value")
    given: list[str] = []
    parts: list[str] = []
    rest = dotted.split(".")
    here: Any = data
    while True:
        n = _words_of_name(here, rest)
        given.append(".".join(rest[:n]))
        parts = use_documented_path(given)
        rest = rest[n:]
        if not rest:
            break
        here = _descend(here, parts[-1], f"--set {text}: {'.'.join(parts)}")
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


def _words_of_name(here: Any, words: list[str]) -> int:
    """How many of the words between dots are the first name: as many as name an entry, else one."""
    entries = here if isinstance(here, list) else []
    names = here if isinstance(here, dict) else {n for entry in entries for n in _names(entry)}
    joined = (n for n in range(len(words), 1, -1) if ".".join(words[:n]) in names)
    return next(joined, 1)


def _descend(here: Any, part: str, where: str) -> Any:
    if isinstance(here, dict):
        if here.get(part) is None:  # absent, or a key without a value
            here[part] = {}
        return here[part]
    if isinstance(here, list):
        return here[_index(here, part, where)]
    raise ConfigError(f"{where}: is a value, not a group of settings")


def _index(entries: list[Any], part: str, where: str) -> int:
    """Place of an entry in a list, by number, name, editor, variant or editor/variant.

    An editor's name alone is its entry without a variant, where it has several.

    Raises:
        ConfigError: There is no such entry, or several and nothing tells which.
    """
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    found = {i: entry for i, entry in enumerate(entries) if part in _names(entry)}
    if len(found) > 1:
        plain = [i for i, entry in found.items() if not entry.get("variant")]
        if len(plain) != 1:
            variants = [entry.get("variant") for entry in found.values()]
            labels = [
                f"{entry.get('editor')}/{variant}" if variant else part
                for entry, variant in zip(found.values(), variants, strict=True)
            ]
            raise ConfigError(
                f"{where}: {len(found)} entries go by {part!r}; name one of them as "
                f"{', '.join(dict.fromkeys(labels))}, or by its number, "
                f"{', '.join(map(str, found))}"
            )
        return plain[0]
    if found:
        return next(iter(found))
    known = [
        str(e.get("name") or e.get("variant") or e.get("editor"))
        for e in entries
        if isinstance(e, dict)
    ]
    raise ConfigError(f"{where}: no such entry{nearest(part, known)}")


def _names(entry: Any) -> set[Any]:
    """What an entry of a list may be called."""
    if not isinstance(entry, dict):
        return set()
    editor, variant = entry.get("editor"), entry.get("variant")
    named = {entry.get("name", entry.get("preset")), variant, editor, f"{editor}/{variant}"}
    return named - {None, "", "None/None"}
