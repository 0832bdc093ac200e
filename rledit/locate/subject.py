"""Token position of an edit's subject.

The contract, the same for every family: the position found is that of the last token that holds a
character of the subject, counted in the ids `Encoder.prompt_ids` gives: BOS, and what a chat
template writes before the prompt, included.
"""

from __future__ import annotations

import unicodedata

from rledit.occurrences import Span, inside_words, is_at, occurrences
from rledit.records import Edit
from rledit.tokenization import Encoder, TokenizationError

# Quotes and dashes that look like plain ones, and characters that show as nothing.
_LOOK_ALIKE = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u02bc\u2032`\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad"),
    }
)


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


def subject_span(edit: Edit) -> Span:
    """First character of the subject in the edit's prompt, and the one after its last.

    The place that the data gives, or else the first occurrence as a whole word, compared in
    Unicode's form NFC.

    Raises:
        TokenizationError: The subject does not occur in the prompt, or only inside other words;
            names file, row and prompt.
    """
    subject, span = subject_of(edit), edit.subject_span
    if span is not None:
        if is_at(edit.prompt, span, subject):
            return span
        raise TokenizationError(
            f"{edit.source or edit.edit_id}: the subject {subject!r} does not stand at characters "
            f"{span[0]} to {span[1]} of the prompt {edit.prompt!r}, as the edit says; correct its "
            "subject_span, or leave it out"
        )
    found = occurrences(edit.prompt, subject)
    if found:
        return found[0]
    reason = _why_not(edit.prompt, subject)
    raise TokenizationError(
        f"{edit.source or edit.edit_id}: the subject {subject!r} {reason} the prompt "
        f"{edit.prompt!r}; write it as it stands there, or leave the row out"
    )


def _why_not(prompt: str, subject: str) -> str:
    if inside_words(prompt, subject):
        return "occurs only inside other words of"
    if occurrences(prompt.casefold(), subject.casefold()):
        return "does not occur in, but for its upper and lower case,"
    if occurrences(_plain_look(prompt), _plain_look(subject)):
        return "does not occur in, but for look-alike characters (spaces, quotes, dashes, widths),"
    return "does not occur in"


def _plain_look(text: str) -> str:
    """The text with plain characters for those that look alike, without what shows as nothing."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_LOOK_ALIKE).split())


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
