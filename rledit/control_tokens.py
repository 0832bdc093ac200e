"""Text that spells a control token, such as ``<|endoftext|>`` in a row, encoded as the text it is.

A tokenizer takes such a text for the token itself. That is right for what a chat template writes,
and wrong for data: exported rows hold ``<|endoftext|>`` where there was no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rledit.errors import UserError

SPELLINGS = re.compile(
    r"""
      <[|｜][^<>|｜\s]{1,60}[|｜]>
    | </?s> | <(?:unk|pad|bos|eos|mask|sep|cls|sop|eop|eod|eos_token|bos_token)>
    | </?(?:think|thinking|thought|reasoning|tool_call|tool_response|tools)>
    | <(?:start|end)_of_[a-z]+> | <(?:unused|extra_id_|reserved_)\d+> | <0x[0-9A-F]{2}>
    | \[/?INST\] | <</?SYS>> | \[(?:PAD|UNK|CLS|SEP|MASK|BOS|EOS|gMASK|/?THINK)\] | \[@BOS@\]
    """,
    re.VERBOSE,
)
"""How the control tokens of common tokenizers are spelt, for data without a tokenizer at hand."""


_MARKED = re.compile(r"[<\[◁⟨【|｜]")
_SHOWN = 80  # characters of a text in a message


class TokenizationError(UserError, ValueError):
    """A text, or a tokenizer, that breaks the token contract (see `rledit.tokenization`)."""


@dataclass(frozen=True)
class Tokens:
    """A text as tokens, without BOS.

    Attributes:
        ids: Token ids.
        spans: First character of each token and the one after its last; None where the tokenizer
            does not say.
    """

    ids: list[int]
    spans: list[tuple[int, int]] | None


@dataclass(frozen=True)
class Turn:
    """A chat template's text around a prompt, and where an answer begins."""

    head: str
    content: str
    tail: str
    answer: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return f"{self.head}{self.content}{self.tail}{self.answer}"


class TextEncoder:
    """Encodes data as text, and a template's text with its control tokens.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._fast = bool(getattr(tokenizer, "is_fast", False))
        added = tokenizer.added_tokens_decoder
        template = _template(tokenizer)
        control = {i: t for i, t in zip(*_special(tokenizer), strict=True) if t}
        control |= {i: t.content for i, t in added.items() if _controls(t, template)}
        self._ids = frozenset(control)
        self._strings = frozenset(control.values())
        self._first = frozenset(s[0] for s in self._strings)
        longest = sorted(self._strings, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest)) or "(?!)")

    def spelled(self, text: str) -> tuple[str, ...]:
        """The control tokens that a text spells."""
        if self._first.isdisjoint(text):
            return ()
        return tuple(dict.fromkeys(self._pattern.findall(text)))

    def as_written(self, text: str, spans: bool = False) -> Tokens:
        """Tokens of a text whose control tokens are meant: what the tokenizer itself gives."""
        if not (self._fast and spans):
            return Tokens(list(self._tokenizer(text, add_special_tokens=False)["input_ids"]), None)
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Tokens(list(found["input_ids"]), [(a, b) for a, b in found["offset_mapping"]])

    def as_text(self, text: str, spans: bool = False) -> Tokens:
        """Tokens of data: what spells a control token is text like any other.

        Args:
            text: The text.
            spans: Whether their places in it are wanted.

        Raises:
            TokenizationError: The tokenizer cannot do it.
        """
        spelled = self.spelled(text)
        if not spelled:
            return self.as_written(text, spans)
        if self._fast:
            found = self._textual.encode(text, add_special_tokens=False)
            tokens = Tokens(list(found.ids), list(found.offsets))
        else:
            ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            tokens = Tokens(list(ids["input_ids"]), None)
        if not self._ids.isdisjoint(tokens.ids):
            raise TokenizationError(_unspellable(self._tokenizer, spelled, text))
        return tokens

    def as_turn(self, turn: Turn, spans: bool = False) -> Tokens:
        """Tokens of a chat: the template's control tokens are meant, those of the data are not.

        Args:
            turn: The chat.
            spans: Whether their places in it are wanted.

        Raises:
            TokenizationError: The tokenizer cannot tell them apart.
        """
        spelled = (*self.spelled(turn.content), *self.spelled(turn.answer))
        if not spelled:
            return self.as_written(turn.text, spans)
        for anchor in ("", "\n"):
            plain = _harmless(turn)
            if self._pieced(plain, anchor).ids == self.as_written(plain.text).ids:
                return self._pieced(turn, anchor)
        raise TokenizationError(_unspellable(self._tokenizer, spelled, turn.content))

    @cached_property
    def _textual(self) -> Any:
        """The tokenizer's backend for which every control token is one that it can pass over."""
        from tokenizers import AddedToken

        backend = deepcopy(self._tokenizer.backend_tokenizer)
        backend.no_truncation()
        backend.no_padding()
        backend.add_special_tokens([AddedToken(s, special=True) for s in sorted(self._strings)])
        backend.encode_special_tokens = True
        return backend

    def _pieced(self, turn: Turn, anchor: str) -> Tokens:
        """Tokens of a chat piece by piece, cut at the template's own control tokens.

        That is where the tokenizer cuts it too. Some put a mark of their own before a text; with an
        `anchor` before it, a piece is no beginning.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] | None = [] if self._fast else None
        start = 0
        for piece, is_data in self._pieces(turn):
            lead = anchor if start and is_data else ""
            encode = self.as_text if is_data else self.as_written
            before, found = len(encode(lead).ids) if lead else 0, encode(lead + piece, True)
            ids += found.ids[before:]
            if spans is not None and found.spans is not None:
                shift = start - len(lead)
                spans += [(a + shift, b + shift) for a, b in found.spans[before:]]
            start += len(piece)
        return Tokens(ids, spans)

    def _pieces(self, turn: Turn) -> Iterator[tuple[str, bool]]:
        """The parts of a chat, and whether each is data with the plain text around it."""
        before = max((m.end() for m in self._pattern.finditer(turn.head)), default=0)
        control = [m.span() for m in self._pattern.finditer(turn.tail)]
        first, last = (control[0][0], control[-1][1]) if control else (len(turn.tail),) * 2
        yield turn.head[:before], False
        if control:
            yield turn.head[before:] + turn.content + turn.tail[:first], True
            yield turn.tail[first:last], False
            yield turn.tail[last:] + turn.answer, True
        else:
            yield turn.head[before:] + turn.content + turn.tail + turn.answer, True


def _special(tokenizer: Any) -> tuple[list[int], list[str]]:
    ids = list(tokenizer.all_special_ids)
    return ids, [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def _template(tokenizer: Any) -> str:
    """A tokenizer's chat template, or all of them where it has several."""
    found = tokenizer.chat_template or ""
    return found if isinstance(found, str) else "\n".join(map(str, found.values()))


def _controls(token: Any, template: str) -> bool:
    """Whether an added token steers a model; some are line breaks, words and tags of HTML."""
    if token.special or SPELLINGS.fullmatch(token.content):
        return True
    return _MARKED.search(token.content) is not None and token.content in template


def _harmless(turn: Turn) -> Turn:
    return Turn(turn.head, "Rome", turn.tail, "Oslo" if turn.answer else "")


def _unspellable(tokenizer: Any, spelled: tuple[str, ...], text: str) -> str:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    listed = ", ".join(repr(s) for s in dict.fromkeys(spelled))
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return (
        f"{shown!r} spells a control token ({listed}), which the tokenizer of {name} cannot encode "
        "as ordinary text; take it out of the row"
    )
