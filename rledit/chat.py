"""A prompt as one user's turn of the tokenizer's own chat template.

The template is taken apart once, into what it writes before the prompt and behind it, and every
prompt is held against that: positions inside a prompt can only be found where it stands verbatim.

A template of a reasoning model is asked to leave the thinking out; one that cannot, and opens the
block itself, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rledit.control_tokens import TokenizationError
from rledit.reasoning import open_block, remedy, switches

PromptStyle = Literal["bare", "chat"]
"""`bare`: the prompt itself. `chat`: a user's turn, followed by the beginning of the answer's."""

_MARKER = "⁂the prompt⁂"
_ANSWER = "⁂the answer⁂"
# Llama-3.1's template writes a date, by default today's. A number must not depend on it.
_DATE = "26 Jul 2024"


class ChatTemplateError(TokenizationError):
    """A tokenizer's chat template cannot be used, or not for a prompt."""


@dataclass(frozen=True)
class Rendered:
    """The text that a model sees for a prompt.

    Attributes:
        text: All of it, up to where the answer begins.
        start: Character of `text` at which the prompt's first character stands, or would stand
            if white space before the prompt were not left out.
    """

    text: str
    start: int


class ChatTemplate:
    """One user's turn and the beginning of the assistant's.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Attributes:
        head: What the template writes before the prompt, a BOS token among it where it has one.
        tail: What it writes behind the prompt, up to where the answer begins.
        writes_bos: Whether it begins with a BOS token of its own.
        without_thinking: The template's own variables by which it leaves the thinking out, with
            their values; empty where it has none.

    Raises:
        ChatTemplateError: The tokenizer has no template, or none that holds a prompt verbatim, is
            the same every day, and lets an answer stand outside the model's thinking.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ChatTemplateError(
                f"prompt_style chat: the tokenizer of {_name(tokenizer)} has no chat template; "
                "take the instruction-tuned model, or prompt_style plain"
            )
        template = tokenizer.get_chat_template()
        if "strftime_now" in template and "date_string" not in template:
            raise ChatTemplateError(
                f"prompt_style chat: the template of {_name(tokenizer)} writes the date of the day "
                "into every prompt, so figures would change with it; take prompt_style plain, or a "
                "checkpoint with a template that does not"
            )
        self.without_thinking = switches(template)
        parts = self._apply(_MARKER).split(_MARKER)
        if len(parts) != 2:
            raise ChatTemplateError(self._not_verbatim(_MARKER, _MARKER.join(parts)))
        self.head, self.tail = parts
        bos = tokenizer.bos_token
        # Some call the mark of a turn their BOS token; that begins every turn.
        self.writes_bos = bool(bos) and self.head.startswith(bos) and "".join(parts).count(bos) == 1
        if (mark := open_block(self.tail, self._before_answer())) is not None:
            problem = remedy(mark, self.without_thinking)
            raise ChatTemplateError(
                f"prompt_style chat: the template of {_name(tokenizer)} {problem}"
            )

    def render(self, prompt: str) -> Rendered:
        """A prompt inside the template; white space around it is left out.

        Raises:
            ChatTemplateError: The prompt does not stand in it as it is.
        """
        content = prompt.strip()
        text = self._apply(content)
        if text != f"{self.head}{content}{self.tail}":
            raise ChatTemplateError(self._not_verbatim(content, text))
        return Rendered(text, len(self.head) - prompt.index(content))

    def _before_answer(self) -> str | None:
        """What the template writes between a prompt and an answer that is given."""
        try:
            text = self._apply(_MARKER, _ANSWER)
        except ChatTemplateError:
            return None
        _, _, behind = text.partition(_MARKER)
        before, found, _ = behind.partition(_ANSWER)
        return before if found else None

    def _apply(self, content: str, answer: str | None = None) -> str:
        import jinja2

        turns = [{"role": "user", "content": content}]
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=answer is None,
                date_string=_DATE,
                **self.without_thinking,
            )
        except jinja2.TemplateError as error:
            raise ChatTemplateError(
                f"prompt_style chat: the template of {_name(self._tokenizer)} refuses a single "
                f"user's turn ({error}); take prompt_style plain"
            ) from None
        return text

    def _not_verbatim(self, content: str, text: str) -> str:
        return (
            f"prompt_style chat: the template of {_name(self._tokenizer)} does not hold the prompt "
            f"{content!r} as it is, but writes {text!r}, so no position in it can be found; take "
            "prompt_style plain, or a checkpoint whose template leaves prompts alone"
        )


def _name(tokenizer: Any) -> str:
    """Where a tokenizer comes from, for messages."""
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
