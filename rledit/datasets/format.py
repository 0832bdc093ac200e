"""What a dataset format is: the keys it needs and a pure function from a row to edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rledit.datasets.errors import RowError
from rledit.datasets.fields import Fields, Place, Row, kind_of
from rledit.records import Edit, Locality


def nothing_odd(row: Row) -> tuple[str, ...]:
    """The default of `Format.observe`: this format hides no trap from the mapped edit."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Format:
    """One schema of editing data.

    Attributes:
        name: Name in the registry and in settings.
        title: The dataset and the source of its schema, for people.
        required: The keys by which the schema is recognised; a row without one is refused.
        read: Maps one row to its edits (most rows hold one); texts stay as they are written.
        observe: Names the traps that only the raw row shows, the mapped edit no longer.
        detected: False for a second reading of a schema, which must be asked for by name.
        example: An invented row of this schema, for documentation and contract tests.
    """

    name: str
    title: str
    required: tuple[str, ...]
    read: Callable[[Row, Place], list[Edit]]
    observe: Callable[[Row], tuple[str, ...]] = nothing_odd
    detected: bool = True
    example: Row

    @property
    def schema(self) -> str:
        """Name and keys, as error messages show them."""
        return f"{self.name} ({', '.join(self.required)})"

    def missing(self, row: Row) -> tuple[str, ...]:
        """The required keys that `row` lacks."""
        return tuple(key for key in self.required if key not in row)

    def read_row(self, row: object, place: Place) -> list[Edit]:
        """Map one row, naming all the keys it lacks at once.

        Raises:
            RowError: The row is not an object, lacks keys, or holds values that cannot be mapped.
        """
        if not isinstance(row, Mapping):
            raise RowError(place.file, place.row, f"the row is {kind_of(row)}, not an object")
        missing = self.missing(row)
        if missing:
            keys = ", ".join(f"`{key}`" for key in missing)
            reason = f"lacks {keys}, which schema {self.schema} needs"
            raise RowError(place.file, place.row, reason, missing)
        return self.read(row, place)


def probe(fields: Fields, prompt_key: str, answer_key: str) -> tuple[Locality, ...]:
    """The locality probe of two keys: one, or none where the prompt or its answer is blank."""
    prompt, answer = fields.optional(prompt_key), fields.optional(answer_key)
    if prompt is None or answer is None:
        return ()
    return (Locality(prompt=prompt, answer=answer),)


def some(text: str | None) -> tuple[str, ...]:
    """A tuple of the text, empty for None."""
    return () if text is None else (text,)
