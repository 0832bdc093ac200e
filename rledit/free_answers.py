"""Free answers as WILD asks for them (arXiv 2502.11177): greedy, short, ended by the sentence.

The model goes on from the prompt alone, at most `MOST_TOKENS` tokens, up to a full stop, a line
break or an end-of-sequence token, as in the paper's release. The full stop also ends names such as
"St. Louis"; `FreeForm.full_stop` says whether it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rledit.chat import ChatTemplateError
from rledit.decoding import EndOfLine, Line, decode, line_of
from rledit.model import EditableModel
from rledit.tokenization import Encoder

MOST_TOKENS = 50

Context = Literal["question", "instruction", "chat"]
"""What stands around a question: nothing, a request to answer it, or a turn of a chat."""

_INSTRUCTION = "Answer the following question.\n\nQ: {}\nA:"
_FULL_STOPS = (".", "。")


@dataclass(frozen=True, kw_only=True)
class FreeForm:
    """How free answers are asked for.

    Attributes:
        context: What stands around a question. A `chat` is one user's turn of the tokenizer's own
            chat template; with `prompt_style: chat` all three stand in one.
        full_stop: Whether a full stop ends an answer.
    """

    context: Context = "question"
    full_stop: bool = True

    def text(self, prompt: str) -> str:
        """The prompt with what stands around it, without a chat template."""
        # No `format`: a prompt may hold braces.
        return _INSTRUCTION.replace("{}", prompt) if self.context == "instruction" else prompt

    def encoder(self, encoder: Encoder) -> Encoder:
        """What turns the questions of this form into tokens.

        Raises:
            TokenizationError: A chat is asked for, and the tokenizer has no usable template.
        """
        if self.context != "chat" or encoder.style == "chat":
            return encoder
        try:
            chat = Encoder(encoder.tokenizer, max_length=encoder.max_length, style="chat")
        except ChatTemplateError as error:
            said = str(error).replace("prompt_style chat", "wild.context chat")
            said = said.replace("prompt_style plain", "wild.context question or instruction")
            raise ChatTemplateError(said) from None
        chat.lead = encoder.lead
        return chat


def free_answers(model: EditableModel, prompts: Sequence[str], form: FreeForm) -> list[Line]:
    """What the model answers to each prompt on its current weights.

    Several ranks share the prompts out; every rank gets all answers.

    Raises:
        NonFiniteError: The model gives no numbers behind a prompt.
    """
    asked = [form.text(prompt) for prompt in prompts]
    stop = EndOfSentence(model) if form.full_stop else EndOfLine(model)
    last = stop.ends_with_full_stop if isinstance(stop, EndOfSentence) else None
    encoder = form.encoder(model.encoder)
    written = decode(model, asked, MOST_TOKENS, stop, encoder=encoder, last=last)
    texts = [line_of(model, ids) for ids in written]
    if last is not None:
        texts = [text.rstrip("".join(_FULL_STOPS)).rstrip() for text in texts]
    return [Line(tokens=tuple(i), text=t) for i, t in zip(written, texts, strict=True)]


class EndOfSentence(EndOfLine):
    """Ends a text at an end-of-sequence token, a line break or a full stop.

    A token that begins with a full stop and holds no letter and no digit is left out. One that
    ends in a full stop behind something else, as `).` or `St.`, is the last one of the text, so
    that nothing before the stop is lost, and names are cut alike whether or not the tokenizer has
    a token for them. A full stop further inside a token, as in "3.5" or ".com", ends nothing.
    """

    def __init__(self, model: EditableModel) -> None:
        super().__init__(model)
        self._stops: dict[int, bool] = {}
        self._last: dict[int, bool] = {}

    def __call__(self, token: int) -> bool:
        if super().__call__(token):
            return True
        if token not in self._stops:
            text = self.text(token).strip()
            marks = not any(character.isalnum() for character in text)
            self._stops[token] = text.startswith(_FULL_STOPS) and marks
        return self._stops[token]

    def ends_with_full_stop(self, token: int) -> bool:
        """Whether a token ends the text and is part of it, but for its full stop."""
        if token not in self._last:
            self._last[token] = self.text(token).rstrip().endswith(_FULL_STOPS)
        return self._last[token]
