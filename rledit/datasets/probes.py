"""Prompts with answers beside an edit (unrelated, or following from it), in the shapes of files.

KnowEdit: sections of probes by kind. EasyEdit's requests: sections that hold one probe, or a list
of prompts and one of answers. EasyEdit's ZsRE and CounterFact with portability (arXiv 2305.13172):
one ``New Question`` with its ``New Answer``. A probe that lacks one of the two is left out, and
counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from rledit.datasets.fields import Fields
from rledit.datasets.values import Aliases, RowObject, has_content
from rledit.records import Consequence, Locality

ONE_HOP = "one_hop"  # EasyEdit's name for questions of no other kind
_PROMPT, _ANSWER = "prompt", "ground_truth"
_NAMES = {
    _PROMPT: ("loc", "question", "New Question"),
    _ANSWER: ("loc_ans", "answer", "answers", "New Answer"),
}


def _aliases(section: str) -> dict[str, tuple[str, ...]]:
    return {
        f"{section}{items}.{key}": others
        for items in ("", "[]", ".*", ".*[]")
        for key, others in _NAMES.items()
    }


LOCALITY: Aliases = _aliases("locality")
PORTABILITY: Aliases = _aliases("portability")

# A prompt and its answer, as the schemas of flat rows call them.
_LOCALITY_PAIRS = (
    ("loc", "loc_ans"),
    ("locality_prompt", "locality_ground_truth"),
    ("unrel_prompt", "unrel_ans"),
)
_PORTABILITY_PAIRS = (("mhop", "mhop_ans"), ("questions", "new_answer"))


def locality(fields: Fields, first: str) -> tuple[Locality, ...]:
    """The unrelated prompts under ``locality``.

    Args:
        fields: The row.
        first: The section that comes first.

    Raises:
        RowError: As for `portability`.
    """
    found = sorted(_sections(fields, "locality"), key=lambda item: item[0] != first)
    return tuple(
        Locality(prompt=p, answer=a) for _, p, a in found if p is not None and a is not None
    )


def portability(fields: Fields, extra: bool = True) -> tuple[Consequence, ...]:
    """The questions under ``portability``, which follow from the edit; none without such a key.

    Args:
        fields: The row.
        extra: The schema does not have that key by itself, only variants of it do.

    Raises:
        RowError: They are written in another shape, or a list of prompts and the list of their
            answers have different lengths.
    """
    found = tuple(
        Consequence(kind=kind, prompt=prompt, answers=(answer,))
        for kind, prompt, answer in _sections(fields, "portability")
        if prompt is not None and answer is not None
    )
    if found and extra:
        fields.adapt("portability")
    return found


def _sections(fields: Fields, key: str) -> Iterator[tuple[str, str | None, str | None]]:
    """Section, prompt and answer of every probe under a key."""
    if not fields.has(key):
        return
    if isinstance(fields.value(key), list):
        for item in fields.children(key):
            yield (ONE_HOP, *_pair(item))
        return
    sections = fields.child(key)
    if sections.has(_PROMPT):
        for item in sections.zipped(_PROMPT, _ANSWER):
            yield (ONE_HOP, *_pair(item))
        return
    for name in sections.names():
        for item in _items(sections, name):
            yield (name, *_pair(item))


def _items(sections: Fields, name: str) -> list[Fields]:
    if isinstance(sections.value(name), RowObject):
        return sections.child(name).zipped(_PROMPT, _ANSWER)
    return sections.children(name)


def _pair(item: Fields) -> tuple[str | None, str | None]:
    return item.optional(_PROMPT), item.first_answer(_ANSWER)


def half_probes(row: RowObject) -> tuple[str, ...]:
    """A trap for each probe of a row that was left out, because it lacks prompt or answer."""
    traps: list[str] = []
    for path, part in row.parts():
        for trap, pairs in _pairs_at(path):
            for prompt, answer in pairs:
                if prompt in part.read and answer in part.read:
                    traps += [trap] * _halves(part.get(prompt), part.get(answer))
    return tuple(traps)


def _pairs_at(path: str) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    nested = ((_PROMPT, _ANSWER), ("loc", "loc_ans"))
    if not path:
        flat = ("locality_answer_absent", _LOCALITY_PAIRS)
        return (flat, ("portability_answer_absent", _PORTABILITY_PAIRS))
    if path.startswith("locality"):
        return (("locality_answer_absent", nested),)
    return (("portability_answer_absent", nested),) if path.startswith("portability") else ()


def _halves(prompt: object, answer: object) -> int:
    if isinstance(prompt, list) and isinstance(answer, list) and len(prompt) == len(answer):
        return sum(has_content(p) != has_content(a) for p, a in zip(prompt, answer, strict=True))
    return int(has_content(prompt) != has_content(answer))
