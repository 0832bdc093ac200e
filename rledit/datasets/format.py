"""Dataset formats: the keys that each needs, and a pure function from a row to edits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from rledit.datasets.errors import RowError
from rledit.datasets.fields import Fields, Place, Row
from rledit.datasets.values import Aliases, Renaming, RowObject, absent, mismatch, shown_key
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
        required: The keys by which the schema is recognised; a row without one is refused. Which
            of their values may be missing (null, NaN), the reader knows.
        aliases: Other names that public files have for its keys; see `values.Aliases`.
        read: Maps one row to its edits (most rows hold one); texts stay as they are written.
        observe: Names the traps that only the raw row shows, the mapped edit no longer.
        marks: Keys one level down, ``requested_rewrite.fact_new_uns``, that tell the schema from
            others with its required keys; looked for in an object, or in a list's first one.
        protocols: The protocols that its papers score it by, or that its answers can be scored by,
            the customary one first.
        measurements: What they measure beside.
        detected: False for a second reading of a schema, which must be asked for by name.
        example: An invented row of this schema, for documentation and contract tests.
    """

    name: str
    title: str
    required: tuple[str, ...]
    aliases: Aliases = field(default_factory=dict)
    read: Callable[[Row, Place], list[Edit]]
    observe: Callable[[Row], tuple[str, ...]] = nothing_odd
    marks: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    detected: bool = True
    example: Row

    @property
    def schema(self) -> str:
        """Name and keys, as error messages show them."""
        return f"{self.name} ({', '.join((*self.required, *self.marks))})"

    def missing(self, keys: Collection[str], literal: bool = False) -> tuple[str, ...]:
        """The required keys that are not among the keys of a row, under no name of theirs.

        Args:
            keys: The row's keys with the marks it has, or the row.
            literal: Count the schema's own names only.
        """

        def there(key: str) -> bool:
            others = () if literal else self.aliases.get(key, ())
            return key in keys or any(other in keys for other in others)

        def marked(mark: str) -> bool:
            if not isinstance(keys, Mapping):
                return mark in keys
            outer = mark.partition(".")[0]  # where that is missing, the reader says so
            return has_mark(keys, mark) or (outer in keys and absent(self._renamed(keys[outer])))

        lacking = (key for key in self.required if not there(key))
        return (*lacking, *(mark for mark in self.marks if not marked(mark)))

    @cached_property
    def _renamed(self) -> Renaming:
        return Renaming(self.aliases)

    def open_row(self, row: object, place: Place) -> RowObject:
        """A row under the schema's own names, naming all the keys it lacks at once.

        Raises:
            RowError: The row is not an object, lacks keys, or has one twice under two names with
                different content.
        """
        if not isinstance(row, Mapping):
            reason = f"the row {mismatch(row, 'an object')}"
            raise RowError(place.file, place.row, reason)
        missing = self.missing(row)
        if missing:
            keys = ", ".join(f"`{key}`" for key in missing)
            reason = f"lacks {keys}, which schema {self.schema} needs{_likely(missing, row)}"
            raise RowError(place.file, place.row, reason, missing)
        opened: RowObject = self._renamed(row)
        for path, part in opened.parts():
            for one, other in part.doubled:
                reason = (
                    f"has both `{path}{shown_key(one)}` and `{path}{shown_key(other)}`, which mean "
                    "the same, with different content; keep one of them"
                )
                raise RowError(place.file, place.row, reason)
        return opened


def has_mark(row: Mapping[Any, Any], mark: str) -> bool:
    """Whether a row has a key one level down, in an object or in the first one of a list."""
    outer, _, inner = mark.partition(".")
    found = row.get(outer)
    first = next(iter(found), None) if isinstance(found, list | tuple) else found
    return isinstance(first, Mapping) and inner in first


def _likely(missing: Collection[str], row: Mapping[object, object]) -> str:
    """The keys of a row that look like misspellings of those it lacks."""
    names = [str(name) for name in row]
    near = [name for key in missing for name in get_close_matches(key, names, n=1, cutoff=0.8)]
    return f" (it has {', '.join(f'`{shown_key(name)}`' for name in near)})" if near else ""


REPHRASE = (
    "rephrase",
    "rephrase_prompt",
    "rephrases",
    "rephrase_prompts",
    "rephrased_prompt",
    "rephrased_prompts",
    "paraphrase",
    "paraphrases",
    "paraphrase_prompt",
    "paraphrase_prompts",
    "paraphrased_question",
    "para_question",
    "equiv_prompt",
    "equiv_prompts",
)
"""What public files call the prompts that ask for an edit in other words."""
UNRELATED = ("loc", "loc_prompt", "locality_prompt", "unrel_prompt")
UNRELATED_ANSWER = (
    "loc_ans",
    "loc_answer",
    "locality_ground_truth",
    "locality_answer",
    "locality_ans",
    "unrel_ans",
    "unrel_answer",
)
SUBJECT = ("subject", "entity")
RELATION = ("relation", "relation_id")
OLD = ("old_target", "old_answer", "target_old", "ground_truth", "target_true")
"""What people's own files call what is known of a fact, whichever schema their other keys make."""


def named(key: str, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The aliases of a key that is one of `names` itself."""
    return {key: tuple(name for name in names if name != key)}


def probe(fields: Fields, prompt_key: str, answer_key: str) -> tuple[Locality, ...]:
    """The locality probe of two keys: one, or none where the prompt or its answer is blank."""
    prompt, answer = fields.optional(prompt_key), fields.optional(answer_key)
    if prompt is None or answer is None:
        return ()
    return (Locality(prompt=prompt, answer=answer),)


def some(text: str | None) -> tuple[str, ...]:
    """A tuple of the text, empty for None."""
    return () if text is None else (text,)
