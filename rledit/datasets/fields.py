"""Checked access to the keys of one row: every failure names the file, the row and the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NoReturn

from rledit.datasets.errors import RowError

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


def kind_of(value: object) -> str:
    """JSON's name for the type of `value`, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text" if value.strip() else "blank text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else type(value).__name__


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
            raise RowError(place.file, place.row, f"{what} is {kind_of(values)}, not an object")
        self._values = values

    def fail(self, key: str, reason: str) -> NoReturn:
        """Raise the row error for `key`."""
        place = self._place
        raise RowError(place.file, place.row, f"`{self._path}{key}` {reason}")

    def value(self, key: str) -> Any:
        """The raw value of a key that must be there (it may be null)."""
        if key not in self._values:
            place, name = self._place, f"{self._path}{key}"
            raise RowError(place.file, place.row, f"lacks the key `{name}`", missing=(name,))
        return self._values[key]

    def text(self, key: str) -> str:
        """A text that must be there and not blank: a prompt, a subject of a template."""
        found = self.answer(key)
        if not found.strip():
            self.fail(key, "is blank")
        return found

    def answer(self, key: str) -> str:
        """A text that must be there but may be blank or null (then ``""``): a target."""
        found = self.value(key)
        return "" if found is None else self._checked(key, found)

    def optional(self, key: str) -> str | None:
        """A text that may be absent, null or blank (then None)."""
        found = self._values.get(key)
        if found is None:
            return None
        found = self._checked(key, found)
        return found if found.strip() else None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or one text; null is the empty list, blank texts are left out."""
        found = self.value(key)
        if found is None:
            return ()
        items = [found] if isinstance(found, str) else self._list(key, found)
        checked = (self._checked(f"{key}[{i}]", item) for i, item in enumerate(items))
        return tuple(item for item in checked if item.strip())

    def child(self, key: str) -> Fields:
        """The object under `key`."""
        return Fields(self.value(key), self._place, f"{self._path}{key}.")

    def children(self, key: str) -> list[Fields]:
        """The list of objects under `key`; null is the empty list."""
        found = self.value(key)
        items = [] if found is None else self._list(key, found)
        return [Fields(x, self._place, f"{self._path}{key}[{i}].") for i, x in enumerate(items)]

    def names(self) -> list[str]:
        """The keys of this object, in the order of the file."""
        return [str(key) for key in self._values]

    def has(self, key: str) -> bool:
        """Whether there is such a key, whatever its value."""
        return key in self._values

    def first_answer(self, key: str) -> str | None:
        """The first non-blank text of an answer written as text, list, or list of alias lists.

        Returns:
            None where the key is absent or null, or holds no text at all.
        """
        return self._first(key, self._values.get(key), depth=2)

    def _first(self, key: str, found: object, depth: int) -> str | None:
        if found is None:
            return None
        if isinstance(found, str):
            return self._checked(key, found) if found.strip() else None
        if not isinstance(found, list | tuple) or depth == 0:
            self.fail(
                key,
                f"holds {kind_of(found)} where text or a list of texts was expected",
            )
        answers = [self._first(f"{key}[{i}]", x, depth - 1) for i, x in enumerate(found)]
        return next((answer for answer in answers if answer is not None), None)

    def _list(self, key: str, found: object) -> list[Any]:
        if not isinstance(found, list | tuple):
            self.fail(key, f"is {kind_of(found)}, not a list")
        return list(found)

    def _checked(self, key: str, found: object) -> str:
        if not isinstance(found, str):
            self.fail(key, f"is {kind_of(found)}, not text")
        try:
            found.encode("utf-8")
        except UnicodeEncodeError:
            self.fail(key, "holds half of a surrogate pair, which no tokenizer can encode")
        return found


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
