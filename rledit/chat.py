"""A prompt as one user's turn of the tokenizer's own chat template.

The template is taken apart once, into what it writes before the prompt and behind it, and every
prompt is held against that: positions inside a prompt can only be found where it stands verbatim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jinja2

PromptStyle = Literal["bare", "chat"]
"""`bare`: the prompt itself. `chat`: a user's turn, followed by the beginning of the answer's."""

_MARKER = "⁂the prompt⁂"
# Llama-3.1's template writes a date, by default today's. A number must not depend on it.
_DATE = "26 Jul 2024"


class ChatTemplateError(ValueError):
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

    Raises:
        ChatTemplateError: The tokenizer has no template, or none that holds a prompt verbatim and
            is the same every day.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ChatTemplateError(
                f"prompt_style chat: the tokenizer of {_name(tokenizer)} has no chat template; "
                "take the instruction-tuned model, or prompt_style bare"
            )
        template = tokenizer.get_chat_template()
        if "strftime_now" in template and "date_string" not in template:
            raise ChatTemplateError(
                f"prompt_style chat: the template of {_name(tokenizer)} writes the date of the day "
                "into every prompt, so figures would change with it; take prompt_style bare, or a "
                "checkpoint with a template that does not"
            )
        parts = self._apply(_MARKER).split(_MARKER)
        if len(parts) != 2:
            raise ChatTemplateError(self._not_verbatim(_MARKER, _MARKER.join(parts)))
        self.head, self.tail = parts

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

    def _apply(self, content: str) -> str:
        turn = [{"role": "user", "content": content}]
        try:
            text: str = self._tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True, date_string=_DATE
            )
        except jinja2.TemplateError as error:
            raise ChatTemplateError(
                f"prompt_style chat: the template of {_name(self._tokenizer)} refuses a single "
                f"user's turn ({error}); take prompt_style bare"
            ) from None
        return text

    def _not_verbatim(self, content: str, text: str) -> str:
        return (
            f"prompt_style chat: the template of {_name(self._tokenizer)} does not hold the prompt "
            f"{content!r} as it is, but writes {text!r}, so no position in it can be found; take "
            "prompt_style bare, or a checkpoint whose template leaves prompts alone"
        )


def _name(tokenizer: Any) -> str:
    """Where a tokenizer comes from, for messages."""
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
