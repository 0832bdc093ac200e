"""Tell text of two or four bytes a character, which some editors and shells write, by its start."""

from __future__ import annotations

import codecs

# Byte-order marks; UTF-32's begins like UTF-16's, so it comes first.
_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Without a mark: which of the first bytes are not zero, where the first characters are ASCII, as
# those of JSON are.
_UNMARKED: tuple[tuple[tuple[bool, ...], str], ...] = (
    ((False, False, False, True), "utf-32be"),
    ((True, False, False, False), "utf-32le"),
    ((False, True, False, True), "utf-16be"),
    ((True, False, True, False), "utf-16le"),
)


def wide_encoding(content: bytes) -> str | None:
    """The encoding of such a text, by iconv's name; None for any other content."""
    marked = (encoding for mark, encoding in _MARKS if content.startswith(mark))
    there = tuple(byte != 0 for byte in content[:4])
    unmarked = (encoding for pattern, encoding in _UNMARKED if there == pattern)
    return next(marked, None) or next(unmarked, None)
