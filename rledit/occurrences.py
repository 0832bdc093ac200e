"""Occurrences of a subject in its prompt, for methods that edit there and for checks of data.

Where the data fills a template, its slot is the place (`Edit.subject_span`). Elsewhere the subject
is searched, as a whole word: letters, digits and marks before or behind it would make it part of
another one, except in scripts that write no spaces, and in Korean, whose particles follow a name
without one. Texts are compared in Unicode's form NFC, and
places are those of the text as it is written. Of several occurrences the first counts; the audit
names such rows (`subject_ambiguous`).
"""

from __future__ import annotations

import unicodedata

Span = tuple[int, int]
"""First character, and the one after the last."""

# Scripts that put no space between words (Thai, Lao, Tibetan, Burmese, Khmer, kana, Han), Hangul.
_UNSPACED = (
    (0x0E00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1100, 0x11FF),
    (0x1780, 0x17FF),
    (0x3005, 0x318F),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA960, 0xA97F),
    (0xAC00, 0xD7FF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFFDC),
    (0x20000, 0x3FFFF),
)


def occurrences(text: str, subject: str) -> list[Span]:
    """The places at which a subject stands in a text as a whole word, none inside another.

    Args:
        text: The text, in any Unicode form.
        subject: The subject, in any other; white space around it does not count.
    """
    return [span for span, whole in _found(text, subject) if whole]


def inside_words(text: str, subject: str) -> bool:
    """Whether a subject stands in a text, but only as part of other words."""
    found = _found(text, subject)
    return bool(found) and not any(whole for _, whole in found)


def is_at(text: str, span: Span, subject: str) -> bool:
    """Whether a subject stands at a place of a text, whatever the Unicode forms."""
    start, end = span
    return 0 <= start < end <= len(text) and _nfc(text[start:end]) == _nfc(subject.strip())


def _found(text: str, subject: str) -> list[tuple[Span, bool]]:
    """Places that do not overlap, and whether each is a whole word; whole words come first."""
    wanted = _nfc(subject.strip())
    composed, places = _composed(text)
    found: list[tuple[int, bool]] = []
    at = composed.find(wanted) if wanted else -1
    while at >= 0:
        found.append((at, _is_whole(composed, at, at + len(wanted))))
        at = composed.find(wanted, at + 1)
    kept: list[tuple[int, bool]] = []
    for start, whole in sorted(found, key=lambda one: not one[1]):
        if all(abs(start - other) >= len(wanted) for other, _ in kept):
            kept.append((start, whole))
    return [((places[a], places[a + len(wanted)]), whole) for a, whole in kept]


def _is_whole(text: str, start: int, end: int) -> bool:
    before = start == 0 or not _joined(text[start - 1], text[start])
    behind = end == len(text) or not _joined(text[end - 1], text[end])
    return before and behind


def _joined(one: str, other: str) -> bool:
    """Whether two neighbouring characters belong to one word."""
    if unicodedata.category(other).startswith("M"):
        return True
    return all(_is_letter(c) and not _is_unspaced(c) for c in (one, other))


def _is_letter(character: str) -> bool:
    mark = unicodedata.category(character).startswith("M")
    return mark or character.isalnum() or character == "_"


def _is_unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


def _composed(text: str) -> tuple[str, list[int]]:
    """A text in NFC, and for each of its characters, and its end, the place in the text itself."""
    if unicodedata.is_normalized("NFC", text):
        return text, list(range(len(text) + 1))
    parts: list[str] = []
    places: list[int] = []
    start = 0
    for end in range(1, len(text) + 1):
        if end < len(text) and _composes(text[start:end], text[end]):
            continue
        part = _nfc(text[start:end])
        parts.append(part)
        # A part that stays several characters begins at one place: none of them stands alone.
        places += [start, *[end] * (len(part) - 1)] if part else []
        start = end
    return "".join(parts), [*places, len(text)]


def _composes(part: str, following: str) -> bool:
    """Whether a character changes with what stands before it."""
    if unicodedata.combining(following):
        return True
    return _nfc(part + following) != _nfc(part) + _nfc(following)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
