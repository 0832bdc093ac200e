"""Where the subject of an edit ends, in tokens.

The contract, the same for every family: the position found is that of the last token that holds a
character of the subject, counted in the ids `Encoder.prompt_ids` gives: BOS, and what a chat
template writes before the prompt, included.
"""

from __future__ import annotations

import re

from rledit.records import Edit
from rledit.tokenization import Encoder, TokenizationError


def subject_of(edit: Edit) -> str:
    """The subject of an edit.

    Raises:
        TokenizationError: The data gives none; names file and row.
    """
    if not edit.subject or not edit.subject.strip():
        raise TokenizationError(
            f"{edit.source or edit.edit_id}: the edit has no subject, and locate-then-edit methods "
            f"need one; prompt: {edit.prompt!r}"
        )
    return edit.subject.strip()


def subject_span(edit: Edit) -> tuple[int, int]:
    """First character of the subject in the edit's prompt, and the one after its last.

    The first occurrence that stands on word boundaries counts; without one, the first at all.

    Raises:
        TokenizationError: The subject does not occur in the prompt; names file, row and prompt.
    """
    subject = subject_of(edit)
    word = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", edit.prompt)
    start = word.start() if word else edit.prompt.find(subject)
    if start < 0:
        raise TokenizationError(
            f"{edit.source or edit.edit_id}: the subject {subject!r} does not occur in the prompt "
            f"{edit.prompt!r}; correct the row, or leave it out"
        )
    return start, start + len(subject)


def last_token(encoder: Encoder, text: str, end: int, where: str = "") -> int:
    """Position of the last token that holds a character before `end`.

    Args:
        encoder: The model's encoder.
        text: A prompt.
        end: Number of characters up to and including the subject.
        where: File and row, for error messages.

    Raises:
        TokenizationError: No token ends there.
    """
    shown, found = encoder.rendered(text), encoder.prompt_tokens(text)
    stop = shown.start + end
    if found.spans is not None:
        inside = [i for i, (first, last) in enumerate(found.spans) if first < stop and last > first]
    else:
        inside = _without_offsets(encoder.tokenizer, shown.text, stop)
    if not inside:
        raise TokenizationError(
            f"{where + ': ' if where else ''}no token of {text!r} holds the subject's last "
            f"character (character {end})"
        )
    return len(encoder.bos_before(found.ids)) + inside[-1]


def _without_offsets(tokenizer: object, text: str, end: int) -> list[int]:
    """Tokens of the text up to the subject's end, for tokenizers that give no offsets."""
    head = tokenizer(text[:end], add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    # The last token may grow with what follows the subject; those before it may not change.
    if list(whole[: len(head) - 1]) != list(head[:-1]):
        raise TokenizationError(
            f"{text!r} is split differently with and without what follows the subject; "
            "use a fast tokenizer, which tells where its tokens lie"
        )
    return list(range(len(head)))
