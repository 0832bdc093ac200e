"""Greedy decoding from prompts alone, in batches of prompts of one length.

Prompts of unequal length never share a pass, so there is no padding that a result could depend on.
The stop rule is declared: the first of an end-of-sequence token, a line break, `MAX_NEW_TOKENS`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rledit.finite import refuse, usable
from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.ranks import shard
from rledit.tokenization import IGNORED, Encoder, Sample

MAX_NEW_TOKENS = 30

Choose = Callable[[Tensor, Sequence[int], int], Tensor]
"""Picks tokens (b,) from logits (b, vocabulary), for the prompts of these places, at a step."""


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


def decode(
    model: EditableModel,
    prompts: Sequence[str],
    max_new_tokens: int | Sequence[int],
    stop: Callable[[int], bool] | None = None,
    choose: Choose | None = None,
    blank: Callable[[int], bool] | None = None,
    encoder: Encoder | None = None,
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

    Raises:
        NonFiniteError: The model gives no numbers behind a prompt; names it, and the layer.
    """
    encoder = encoder or model.encoder
    ids = [torch.tensor(encoder.prompt_ids(prompt)) for prompt in prompts]
    if any(len(row) == 0 for row in ids):
        raise ValueError("an empty prompt cannot be continued")
    several = not isinstance(max_new_tokens, int)
    limits = torch.tensor(max_new_tokens if several else [max_new_tokens] * len(prompts))
    written = torch.full((len(prompts), int(limits.max()) if prompts else 0), IGNORED)
    broken = torch.zeros(len(prompts), dtype=torch.long)
    own = shard([Sample(row, row) for row in ids], model.ranks)
    parts = _of_one_length(model, ids, own)
    for i in range(model.passes(len(parts))):
        # None are left where only other ranks of a sharded model have prompts.
        part = parts[i] if i < len(parts) else []
        begun = torch.stack([ids[p] for p in part]) if part else torch.zeros(0, 1, dtype=torch.long)
        room = _room(model, begun.shape[1], limits[part])
        with model.announced(begun):
            rows, failed = _continue(model, begun, part, room, stop, choose, blank)
        written[part, : rows.shape[1]] = rows
        broken[part] = failed.long()
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


def _of_one_length(
    model: EditableModel, ids: Sequence[Tensor], own: Sequence[int]
) -> list[list[int]]:
    """Places of prompts that run together."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place in own:
        groups[len(ids[place])].append(place)
    parts: list[list[int]] = []
    for length, places in sorted(groups.items()):
        size = max(1, model.execution.tokens(model.device) // length)
        parts += [places[first : first + size] for first in range(0, len(places), size)]
    return parts


@torch.no_grad()
def _continue(
    model: EditableModel,
    ids: Tensor,
    places: Sequence[int],
    room: Tensor,
    stop: Callable[[int], bool] | None,
    choose: Choose | None,
    blank: Callable[[int], bool] | None,
) -> tuple[Tensor, Tensor]:
    """(b, steps) tokens behind prompts (b, T) of one length, `IGNORED` from the stop on.

    A row has at most as many as its entry of `room` (b,) says. The second, (b,) bool, tells which
    came to logits that are no numbers before their stop.
    """
    most = max([0, *room.tolist()])
    rows = torch.full((len(ids), most), IGNORED)
    running = room > 0
    failed = torch.zeros(len(ids), dtype=torch.bool)
    begun = torch.full((len(ids),), blank is None)
    state: dict[str, Any] = {"input_ids": ids.to(model.device)}
    for step in itertools.count():
        runs = bool(running.any())
        # A sharded model makes as many steps as the rank whose texts are longest.
        if not model.passes(int(runs)):
            break
        if not runs:
            nothing = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            with model.weights.without_overlay():
                model.model(input_ids=nothing, use_cache=False, logits_to_keep=1)
            continue
        output: Any = model.model(**state, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1].to(model.compute_dtype)
        token = logits.argmax(-1) if choose is None else choose(logits, places, step)
        # Together, so that a step waits for the device once.
        token, fine = torch.stack((token, usable(logits).to(token))).cpu()
        failed |= running & (fine == 0)
        if blank is not None:
            begun |= ~torch.tensor([blank(t) for t in token.tolist()])
        if stop is not None:
            running &= ~(begun & torch.tensor([stop(t) for t in token.tolist()]))
        rows[running, step] = token[running]
        running &= step + 1 < room
        state = {"input_ids": token[:, None].to(model.device)}
        state["past_key_values"] = output.past_key_values
    return rows, failed


def _last_asked(ids: Tensor) -> Tensor:
    labels = torch.full_like(ids, IGNORED)
    labels[-1] = 0
    return labels


def _room(model: EditableModel, length: int, wanted: Tensor) -> Tensor:
    """(b,) the wanted numbers of tokens, as far as the model has positions behind the prompts."""
    limit = model.encoder.max_length
    return wanted if limit is None else wanted.clamp_max(max(0, limit - length))


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
