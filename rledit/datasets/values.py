"""Values of a row as readers see them: what is missing, what kind it is, and what nobody has read.

Rows come from JSON, Parquet or a data frame. A missing value may be null, NaN, or what pandas
writes for either; arrays and scalars of numpy stand for lists and numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

_MISSING_TYPES = ("NAType", "NaTType")  # of pandas, which is not imported here
# A row with one of these may have another prompt beside it, as a statement and a question: no doubt
# about which is meant, and the other one is a key that is not read.
_PROMPTS = frozenset({"prompt", "src"})
_SHOWN = 40  # characters


class Unreadable:
    """A row that could not be taken apart.

    Attributes:
        reason: What is wrong with it, to go on after "the row".
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason


def absent(value: object) -> bool:
    """Whether a value stands for one that is missing: null or NaN."""
    return value is None or (isinstance(value, float | Decimal) and value != value)


def has_content(value: object) -> bool:
    """Whether a value says anything: not missing, not blank, not empty."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping):
        return any(map(has_content, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_content, value))
    return not absent(value)


def kind_of(value: object) -> str:
    """What a value is, in the words of JSON where it has one, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float | Decimal):
        return "NaN" if absent(value) else "a number"
    if isinstance(value, str):
        return "text" if value.strip() else "blank text"
    if isinstance(value, bytes):
        return "binary data"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else type(value).__name__


def mismatch(value: object, expected: str) -> str:
    """What is wrong with a value that should be `expected`, for messages."""
    if isinstance(value, Unreadable):
        return value.reason
    if absent(value):
        return f"is missing ({kind_of(value)}), and {expected} is needed"
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."
    return f"is {kind_of(value)}, not {expected}: {shown}"


def shown_key(key: str) -> str:
    """A key as messages show it: anybody's file may have line breaks and worse in one."""
    return key if key.isprintable() else ascii(key)[1:-1]


class RowObject(dict[str, Any]):
    """An object of a row that knows which of its keys were read.

    Its keys are those of the schema; what the file calls otherwise is renamed.

    Attributes:
        read: The keys that a reader has asked for.
        written: Key of the schema → key of the file, where they differ.
        adapted: What a reader took from elsewhere than its schema has it.
        doubled: Pairs of keys that mean the same and have different content.
    """

    __slots__ = ("adapted", "doubled", "read", "written")

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()
        self.written: dict[str, str] = {}
        self.adapted: set[str] = set()
        self.doubled: list[tuple[str, str]] = []

    def unread(self, path: str = "") -> Iterator[str]:
        """Paths of the keys with content that nobody asked for, e.g. ``locality[].source``."""
        for key, value in self.items():
            own = f"{path}{shown_key(self.written.get(key, key))}"
            if key not in self.read:
                if has_content(value):
                    yield own
            elif isinstance(value, RowObject):
                yield from value.unread(f"{own}.")
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, RowObject):
                        yield from item.unread(f"{own}[].")

    def adaptations(self) -> Iterator[str]:
        """What readers took from elsewhere than the schema has it, in this object and inside."""
        for _, part in self.parts():
            yield from part.adapted

    def parts(self, path: str = "") -> Iterator[tuple[str, RowObject]]:
        """This object and all inside it, each behind the path to it."""
        yield path, self
        for key, value in self.items():
            own = f"{path}{shown_key(self.written.get(key, key))}"
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, RowObject):
                    yield from item.parts(f"{own}[]." if isinstance(value, list) else f"{own}.")


Aliases = Mapping[str, tuple[str, ...]]
"""Path of a key → its other names. ``locality[].loc`` is a key of every item of that list, and
``locality.*[].prompt`` one of every item of every list of that object."""


class Renaming:
    """Gives the keys of rows the names of their schema.

    Args:
        aliases: Their other names.
    """

    def __init__(self, aliases: Aliases) -> None:
        self._at: dict[str, list[tuple[str, str]]] = {}
        self._named: set[str] = set()
        for path, others in aliases.items():
            owner, _, name = path.rpartition(".")
            self._at.setdefault(owner, []).extend((name, other) for other in others)
            self._named |= {path[:i] for i, char in enumerate(path) if char in ".["}

    def __call__(self, value: Any, path: str = "") -> Any:
        """A value of anybody's row as JSON would give it, its objects as `RowObject`.

        Args:
            value: The value; it is not changed.
            path: Where it lies, as `Aliases` has it.
        """
        if isinstance(value, str):
            return value
        if isinstance(value, Mapping):
            return self._object(value, path)
        if isinstance(value, list | tuple):
            return [self(item, f"{path}[]") for item in value]
        if type(value).__name__ in _MISSING_TYPES:
            return None
        if hasattr(value, "tolist"):  # an array or scalar of numpy
            return self(value.tolist(), path)
        return value

    def _object(self, values: Mapping[Any, Any], path: str) -> RowObject:
        made = RowObject()
        lead = f"{path}." if path else ""
        for key, value in values.items():
            own = f"{lead}{key}"
            made[str(key)] = self(value, own if own in self._named else f"{lead}*")
        for name, other in self._at.get(path, ()):
            if other in made:
                _rename(made, name, other)
        return made


def _rename(made: RowObject, name: str, other: str) -> None:
    full = has_content(made[other])
    if name not in made or (full and not has_content(made[name])):
        made[name] = made.pop(other)
        made.written[name] = other
        if full:
            made.adapted.add(other)
    elif not full or _texts(made[name]) == _texts(made[other]):
        del made[other]
    elif name not in _PROMPTS:
        made.doubled.append((made.written.get(name, name), other))


def _texts(value: object) -> object:
    """A value so that one text and the list of it are equal."""
    items = value if isinstance(value, list) else [value]
    return [item.strip() if isinstance(item, str) else item for item in items]
