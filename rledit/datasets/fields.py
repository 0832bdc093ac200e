"""Checked access to the keys of one row: every failure names the file, the row and the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any, NoReturn

from rledit.datasets.errors import RowError
from rledit.datasets.values import RowObject, absent, mismatch, shown_key

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a row was read.

    Attributes:
        file: Path or URI as it was given.
        row: Row of a JSON array or line of a JSONL file, counted from 1.
    """

    file: str
    row: int

    def __str__(self) -> str:
        return f"{PurePosixPath(self.file).name}:{self.row}"


class Fields:
    """The keys of one object of a row.

    Args:
        values: The parsed object.
        place: File and row, for messages.
        path: Path of this object inside the row, e.g. ``locality[2].``.

    Raises:
        RowError: `values` is not an object. All methods raise it for what they cannot read.
    """

    def __init__(self, values: object, place: Place, path: str = "") -> None:
        self._place, self._path = place, path
        if not isinstance(values, Mapping):
            what = f"`{path.rstrip('.')}`" if path else "the row"
            reason = f"{what} {mismatch(values, 'an object')}"
            raise RowError(place.file, place.row, reason)
        self._values = values

    def fail(self, key: str, reason: str) -> NoReturn:
        """Raise the row error for `key`."""
        place = self._place
        raise RowError(place.file, place.row, f"`{self._named(key)}` {reason}")

    def _named(self, key: str) -> str:
        """The path of a key, as the file calls it."""
        written = self._values.written if isinstance(self._values, RowObject) else {}
        # A place inside the value, such as [2], stands behind its key.
        name, bracket, rest = key.partition("[")
        return f"{self._path}{shown_key(written.get(name, name))}{bracket}{shown_key(rest)}"

    def _get(self, key: str) -> Any:
        """The raw value of a key, None where it is missing; the key counts as read."""
        if isinstance(self._values, RowObject):
            self._values.read.add(key)
        return self._values.get(key)

    def value(self, key: str) -> Any:
        """The raw value of a key that must be there (it may be null or NaN)."""
        if key not in self._values:
            place, name = self._place, f"{self._path}{key}"
            raise RowError(place.file, place.row, f"lacks the key `{name}`", missing=(name,))
        return self._get(key)

    def text(self, key: str) -> str:
        """A text that must be there and not blank: a prompt, a subject of a template."""
        found = self.answer(key)
        if not found.strip():
            self.fail(key, "is blank")
        return found

    def answer(self, key: str) -> str:
        """A text that must be there but may be blank: a target."""
        return self._checked(key, self.value(key))

    def optional(self, key: str) -> str | None:
        """A text that may be absent, null, NaN or blank (then None)."""
        found = self._get(key)
        if absent(found):
            return None
        found = self._checked(key, found)
        return found if found.strip() else None

    def scalar(self, key: str) -> str | None:
        """A text, or a number as text, that may be absent: a name of something, no prompt."""
        return self._scalar(key, self._get(key))

    def scalars(self, key: str) -> tuple[str, ...]:
        """A list of texts and numbers, or one, that may be missing; see `scalar`."""
        found = self._get(key)
        items = found if isinstance(found, list | tuple) else [found]
        named = (self._scalar(f"{key}[{i}]", item) for i, item in enumerate(items))
        return tuple(item for item in named if item is not None)

    def _scalar(self, key: str, found: object) -> str | None:
        if absent(found):
            return None
        number = isinstance(found, int | float | Decimal) and not isinstance(found, bool)
        return str(found) if number else self._checked(key, found)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or one text, that may be missing; so may each of its texts."""
        found = self._get(key)
        if absent(found):
            return ()
        if isinstance(found, str):
            return (found,) if self._checked(key, found).strip() else ()
        items = self._list(key, found, "text or a list of texts")
        checked = (
            self._checked(f"{key}[{i}]", item) for i, item in enumerate(items) if not absent(item)
        )
        return tuple(item for item in checked if item.strip())

    def child(self, key: str) -> Fields:
        """The object under `key`."""
        return Fields(self.value(key), self._place, f"{self._named(key)}.")

    def children(self, key: str) -> list[Fields]:
        """The list of objects under `key`; both it and each of them may be missing."""
        found = self.value(key)
        items = [] if absent(found) else self._list(key, found, "a list of objects")
        return [
            Fields(item, self._place, f"{self._named(key)}[{i}].")
            for i, item in enumerate(items)
            if not absent(item)
        ]

    def zipped(self, first: str, second: str) -> list[Fields]:
        """Objects of two keys that hold lists, item by item; this object where they hold none.

        A list beside a value that is missing is one beside as many that are.
        """
        one, two = paired(self._get(first), self._get(second))
        if not isinstance(one, list):
            return [self]
        if not isinstance(two, list) or len(one) != len(two):
            count = len(two) if isinstance(two, list) else 1
            self.fail(second, f"has {count} entries for the {len(one)} of `{self._named(first)}`")
        return [
            Fields({first: one[i], second: two[i]}, self._place, f"{self._path.rstrip('.')}[{i}].")
            for i in range(len(one))
        ]

    def adapt(self, key: str) -> None:
        """Note that a reader takes something of the row which its schema does not have."""
        if isinstance(self._values, RowObject):
            self._values.adapted.add(key)

    def names(self) -> list[str]:
        """The keys of this object, in the order of the file."""
        return [str(key) for key in self._values]

    def has(self, key: str) -> bool:
        """Whether there is such a key with a value that is not missing."""
        return not absent(self._values.get(key))

    def first_answer(self, key: str) -> str | None:
        """The first non-blank text of an answer written as text, list, or list of alias lists.

        Returns:
            None where the key is absent, null or NaN, or holds no text at all.
        """
        return self._first(key, self._get(key), depth=2)

    def _first(self, key: str, found: object, depth: int) -> str | None:
        if absent(found):
            return None
        if isinstance(found, str):
            return self._checked(key, found) if found.strip() else None
        if not isinstance(found, list | tuple) or depth == 0:
            self.fail(key, mismatch(found, "text or a list of texts"))
        answers = [self._first(f"{key}[{i}]", x, depth - 1) for i, x in enumerate(found)]
        return next((answer for answer in answers if answer is not None), None)

    def _list(self, key: str, found: object, expected: str) -> list[Any]:
        if not isinstance(found, list | tuple):
            self.fail(key, mismatch(found, expected))
        return list(found)

    def _checked(self, key: str, found: object) -> str:
        if not isinstance(found, str):
            self.fail(key, mismatch(found, "text"))
        try:
            found.encode("utf-8")
        except UnicodeEncodeError:
            self.fail(key, "holds half of a surrogate pair, which no tokenizer can encode")
        return found


def paired(one: Any, two: Any) -> tuple[Any, Any]:
    """Two values, one that is missing beside a list as a list of as many missing ones."""
    if isinstance(two, list) and absent(one):
        return [None] * len(two), two
    if isinstance(one, list) and absent(two):
        return one, [None] * len(one)
    return one, two


def fill_template(fields: Fields, key: str, subject: str) -> tuple[str, tuple[int, int]]:
    """The prompt of a template such as ``The capital of {} is``, and the subject's place in it.

    Returns:
        The prompt; the subject's first character and the one after its last, white space at
        either end of the subject left out.

    Raises:
        RowError: The template has no ``{}``, or more than one.
    """
    template = fields.text(key)
    slots = template.count("{}")
    if slots != 1:
        found = "no slot" if slots == 0 else f"{slots} slots"
        fields.fail(
            key,
            f"has {found} for the subject; expected exactly one {{}} in {template!r}",
        )
    start = template.index("{}") + len(subject) - len(subject.lstrip())
    return template.replace("{}", subject), (start, start + len(subject.strip()))
