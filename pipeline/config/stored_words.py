"""Words of a grid: the documented ones, which users write, and the stored ones behind them.

Cells, submissions and lakes keep the words they were first stored with, so that nothing done is run
again; users write the words of the field. Files and ``--set`` may have the stored word instead for
one more version, with a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config.yaml_location import KeyPath, Located
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

Words = Mapping[str, str]

# Stored word → documented word: keys, by the group they stand in ("*": any entry of a list).
_TARGETS = {"modules": "target_modules"}
_KEYS: Mapping[tuple[str, ...], Words] = {
    (): {"statistics": "covariance", "material": "eval_data", "standins": "proxies"},
    ("eval_data",): {"ability": "downstream"},
    ("models", "*"): _TARGETS,
    ("editors", "*", "settings"): _TARGETS,
    ("editors", "*", "candidates", "*"): _TARGETS,
    ("datasets", "*", "world"): {"lessons": "auxiliary"},
    ("streams", "*"): {"standin": "proxy"},
}
# The same of values, by the key that has them.
SCALES: Words = {"standin": "proxy"}
_MEASUREMENTS: Words = {"ability": "downstream", "ability_harness": "downstream_harness"}
STYLES: Words = {"bare": "plain"}
_VALUES: Mapping[tuple[str, ...], Words] = {
    ("scale",): SCALES,
    ("measurements",): _MEASUREMENTS,
    ("models", "*", "prompt_style"): STYLES,
}
_DOCUMENTED_KEYS: Words = {old: new for words in _KEYS.values() for old, new in words.items()}
_DOCUMENTED_VALUES: Words = {**SCALES, **_MEASUREMENTS, **STYLES}


def documented(key: str) -> str:
    """The word that users write for a field of a grid's dataclasses."""
    return _DOCUMENTED_KEYS.get(key, key)


def documented_value(value: str) -> str:
    """The word that users write for a stored value, such as a scale or a measurement."""
    return _DOCUMENTED_VALUES.get(value, value)


def stored_value(value: str, words: Words = _DOCUMENTED_VALUES) -> str:
    """The word that is stored for a value that users write."""
    return next((old for old, new in words.items() if new == value), value)


def documented_text(text: str) -> str:
    """A message about values, with the words that users write where it quotes stored ones."""
    return re.sub(r"'(\w+)'", lambda quoted: f"'{documented_value(quoted[1])}'", text)


def use_documented(located: Located) -> list[str]:
    """Put the documented word for every stored one of a file that a user has written.

    Returns:
        What was replaced, as the warning says it.

    Raises:
        ConfigError: A group has both words for one thing.
    """
    found = []
    for where, words in _KEYS.items():
        for path, group in list(_groups(located.data, where)):
            for old, new in words.items():
                if old not in group:
                    continue
                if new in group:
                    raise ConfigError(
                        f"{located.place((*path, new))}: {new!r} and {old!r}, its old name, are "
                        f"both given (the other at {located.place((*path, old))}); leave {old!r} "
                        "out"
                    )
                found.append(_said(located, (*path, old), old, new))
                located.rename(path, old, new)
    for where, words in _VALUES.items():
        for path, group in list(_groups(located.data, where[:-1])):
            key, place = where[-1], (*path, where[-1])
            values = group.get(key)
            for old in (old for old in words if old == values or _has(values, old)):
                found.append(_said(located, place, old, words[old]))
            group |= {key: _replaced(values, words)} if key in group else {}
    return found


def use_documented_path(parts: Sequence[str]) -> list[str]:
    """The path of a ``--set`` in documented words; entries of lists may go by any name."""
    found: list[str] = []
    for part in parts:
        words = next((w for where, w in _KEYS.items() if _fits(found, where)), {})
        found.append(words.get(part, part))
    return found


def warn_of(replaced: Sequence[str]) -> None:
    """Say in one line which words are old; nothing where none is."""
    if replaced:
        words = "; ".join(dict.fromkeys(replaced))
        logger.warning("old words of grids, accepted in this version for the last time: %s", words)


def stored_settings(settings: Any, group: str = "settings") -> Any:
    """Settings that are kept as the user has given them, in the words that are stored.

    Args:
        settings: Under `settings` or a candidate of an editor, or the `world` of a dataset.
        group: Which of these.
    """
    words = _TARGETS if group == "settings" else _KEYS[("datasets", "*", "world")]
    if not isinstance(settings, Mapping):
        return settings
    return {stored_value(key, words): value for key, value in settings.items()}


def _groups(data: Any, where: Sequence[str], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """The mappings at a place of a grid, with their paths."""
    if not where:
        if isinstance(data, dict):
            yield path, data
    elif where[0] == "*":
        for i, item in enumerate(data if isinstance(data, list) else ()):
            yield from _groups(item, where[1:], (*path, i))
    elif isinstance(data, dict) and where[0] in data:
        yield from _groups(data[where[0]], where[1:], (*path, where[0]))


def _said(located: Located, path: KeyPath, old: str, new: str) -> str:
    line = located.line(path)
    return f"{old!r} is now {new!r}" + (f" (line {line})" if line is not None else "")


def _has(values: Any, word: str) -> bool:
    return isinstance(values, list) and word in values


def _replaced(values: Any, words: Words) -> Any:
    if isinstance(values, list):
        return [_replaced(each, words) for each in values]
    return words.get(values, values) if isinstance(values, str) else values


def _fits(parts: Sequence[str], where: Sequence[str]) -> bool:
    return len(parts) == len(where) and all(
        name in ("*", part) for part, name in zip(parts, where, strict=True)
    )
