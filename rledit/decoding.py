"""Greedy decoding from prompts alone, in batches without padding (see `rledit.continuation`).

The stop rule is declared: the first of an end-of-sequence token, a line break, `MAX_NEW_TOKENS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rledit.continuation import Choose, Continuation, Rule
from rledit.finite import refuse
from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.ranks import shard
from rledit.tokenization import IGNORED, Encoder, Sample

MAX_NEW_TOKENS = 30


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a model writes behind a prompt, up to the stop rule.

    Attributes:
        tokens: The tokens, without the one that ended it.
        text: The same as text, without white space around it.
    """

    tokens: tuple[int, ...]
    text: str


def generate(
    model: EditableModel, prompts: Sequence[str], max_new_tokens: int = MAX_NEW_TOKENS
) -> list[str]:
    """The text that the model writes behind each prompt, see `write_lines`."""
    return [line.text for line in write_lines(model, prompts, max_new_tokens)]


def write_lines(
    model: EditableModel,
    prompts: Sequence[str],
    max_new_tokens: int | Sequence[int],
    blank_first: bool = False,
) -> list[Line]:
    """What the model writes behind each prompt, up to the stop rule.

    Several ranks share the prompts out; every rank gets all lines.

    Args:
        model: The model, on its current weights.
        prompts: Prompts, without an answer; put as the model's encoder puts them.
        max_new_tokens: Most tokens, of each prompt its own where there are several; fewer where the
            model's positions end before.
        blank_first: Let blank lines go before the text; else the first line break ends it.

    Raises:
        NonFiniteError: The model gives no numbers behind a prompt; names it, and the layer.
    """
    end = EndOfLine(model)
    tokens = decode(model, prompts, max_new_tokens, end, blank=end.blank if blank_first else None)
    return [Line(tokens=tuple(ids), text=line_of(model, ids)) for ids in tokens]


def line_of(model: EditableModel, tokens: Sequence[int]) -> str:
    """The text of written tokens up to a line break, without white space around it."""
    text: str = model.encoder.tokenizer.decode(list(tokens), skip_special_tokens=True)
    return text.strip().partition("\n")[0].strip()


def whole_characters(model: EditableModel, line: Line) -> Line:
    """A line without the last tokens where these are a part of a character, which is no text."""
    while line.text.endswith("\N{REPLACEMENT CHARACTER}"):
        tokens = line.tokens[:-1]
        line = Line(tokens=tokens, text=line_of(model, tokens))
    return line


def decode(
    model: EditableModel,
    prompts: Sequence[str],
    max_new_tokens: int | Sequence[int],
    stop: Callable[[int], bool] | None = None,
    choose: Choose | None = None,
    blank: Callable[[int], bool] | None = None,
    encoder: Encoder | None = None,
    last: Callable[[int], bool] | None = None,
) -> list[list[int]]:
    """Tokens written behind each prompt.

    Args:
        model: The model, on its current weights.
        prompts: Prompts, as the model's encoder puts them.
        max_new_tokens: Most tokens, of each prompt its own where there are several; fewer where the
            model's positions end before.
        stop: Whether a token ends the text; it is not part of it. None: never.
        choose: How a token is picked; None: the most likely one.
        blank: Tokens that end no text in which nothing else is written yet; None: all may end it.
        encoder: What turns prompts into tokens; None: the model's own.
        last: Whether a token is the last one of the text, and part of it. None: never.

    Raises:
        NonFiniteError: The model gives no numbers behind a prompt; names it, and the layer.
    """
    encoder = encoder or model.encoder
    ids = [torch.tensor(encoder.prompt_ids(prompt)) for prompt in prompts]
    if any(len(row) == 0 for row in ids):
        raise ValueError("an empty prompt cannot be continued")
    several = not isinstance(max_new_tokens, int)
    limits = torch.tensor(max_new_tokens if several else [max_new_tokens] * len(prompts))
    room = _room(model, torch.tensor([len(row) for row in ids], dtype=torch.long), limits)
    own = shard([Sample(row, row) for row in ids], model.ranks)
    rule = Rule(stop=stop, last=last, choose=choose, blank=blank)
    continuation = Continuation(model, ids, room, rule)
    continuation.run(own)
    written, broken = continuation.written, continuation.broken.long()
    if model.ranks.size > 1 and prompts:
        written[sorted(set(range(len(prompts))) - set(own))] = 0
        model.ranks.all_reduce_(written)
        model.ranks.all_reduce_(broken)
    if bool(broken.any()):
        places = broken.nonzero().flatten().tolist()
        texts = [torch.cat((ids[i], written[i][written[i] != IGNORED])) for i in places]
        samples = [Sample(text, _last_asked(text)) for text in texts]
        refuse(model, samples, len(prompts), "what the model writes")
    return [row[row != IGNORED].tolist() for row in written]


def _last_asked(ids: Tensor) -> Tensor:
    labels = torch.full_like(ids, IGNORED)
    labels[-1] = 0
    return labels


def _room(model: EditableModel, lengths: Tensor, wanted: Tensor) -> Tensor:
    """(b,) the wanted numbers of tokens, as far as the model has positions behind the prompts."""
    limit = model.encoder.max_length
    return wanted if limit is None else torch.minimum(wanted, (limit - lengths).clamp_min(0))


def ends_text(model: EditableModel) -> Callable[[int], bool]:
    """Whether a token is an end-of-sequence token of the tokenizer or of the model."""
    config = getattr(model.model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset({model.encoder.tokenizer.eos_token_id, *listed}).__contains__


class EndOfLine:
    """Ends a text at an end-of-sequence token or a line break."""

    def __init__(self, model: EditableModel) -> None:
        self._tokenizer = model.encoder.tokenizer
        self._ends = ends_text(model)
        self._breaks: dict[int, bool] = {}

    def __call__(self, token: int) -> bool:
        if self._ends(token):
            return True
        # A token such as ".\n" ends the text too; what stands before its break is lost with it.
        if token not in self._breaks:
            self._breaks[token] = "\n" in self.text(token)
        return self._breaks[token]

    def blank(self, token: int) -> bool:
        """Whether a token is nothing but white space."""
        return not self._ends(token) and not self.text(token).strip()

    def text(self, token: int) -> str:
        """A token alone as text."""
        return str(self._tokenizer.decode([token]))
