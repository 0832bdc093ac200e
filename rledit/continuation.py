"""Texts that a model writes side by side: those whose next token has the same place share a pass.

A pass over one token reads all weights, whether for one text or for fifty. So texts that are
equally long by now are continued together, whatever the lengths of their prompts: the shortest
prompts begin, and longer ones join when the texts have reached them. A text that has ended leaves.
Texts of unequal length never share a pass, so there is no padding that a result could depend on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rledit.finite import usable
from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.tokenization import IGNORED

KEPT_TOKENS = {"cpu": 3072}
"""Tokens whose keys and values are kept at a time, by kind of device."""
KEPT_TOKENS_OF_OTHERS = 16_384

Choose = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]
"""Picks tokens (b,) from logits (b, vocabulary), for the prompts of these places, each at a step of
its own."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How tokens are picked, and where a text ends.

    Attributes:
        stop: Whether a token ends the text; it is not part of it. None: never.
        last: Whether a token is the last one of the text, and part of it. None: never.
        choose: How a token is picked; None: the most likely one.
        blank: Tokens that end no text in which nothing else is written yet; None: all may end it.
    """

    stop: Callable[[int], bool] | None = None
    last: Callable[[int], bool] | None = None
    choose: Choose | None = None
    blank: Callable[[int], bool] | None = None


@dataclass(eq=False)
class _Stream:
    """Texts of one length that are continued together.

    Attributes:
        places: (b,) of their prompts.
        steps: (b,) tokens written of each.
        running: (b,) which of them have not ended.
        begun: (b,) which of them a blank token would end.
        state: What the model is called with next.
    """

    places: Tensor
    steps: Tensor
    running: Tensor
    begun: Tensor
    state: dict[str, Any]


class Continuation:
    """Continues prompts on the current weights.

    Args:
        model: The model.
        ids: Tokens of every prompt.
        room: (prompts,) the most tokens that may be written behind each.
        rule: How they are written.

    Attributes:
        written: (prompts, steps) tokens, `IGNORED` from each text's end on.
        broken: (prompts,) bool, which came to logits that are no numbers before their end.
    """

    def __init__(
        self, model: EditableModel, ids: Sequence[Tensor], room: Tensor, rule: Rule
    ) -> None:
        self._model = model
        self._ids = ids
        self._room = room
        self._rule = rule
        self.written = torch.full((len(ids), int(room.max()) if len(ids) else 0), IGNORED)
        self.broken = torch.zeros(len(ids), dtype=torch.bool)

    @torch.no_grad()
    def run(self, places: Sequence[int]) -> None:
        """Write behind the prompts of these places; every rank of a sharded model makes this call.

        Which of them share a pass follows from their lengths and from what may be kept at a time.
        """
        waves = self._waves([p for p in places if self._room[p] > 0])
        for i in range(self._model.passes(len(waves))):
            # None are left where only other ranks of a sharded model have prompts.
            wave = waves[i] if i < len(waves) else []
            if self._model.overlay is None:
                self._write(wave)
                continue
            ids = [self._ids[p] for p in wave] or [torch.zeros(0, dtype=torch.long)]
            with self._model.announced(torch.stack(ids) if wave else torch.zeros(0, 1).long()):
                self._write(wave)

    def _waves(self, places: Sequence[int]) -> list[list[int]]:
        """Places of prompts that are kept at a time, of about the same number each."""
        if self._model.overlay is not None:
            return self._parts(places)  # a memory is told of prompts of one length
        waves: list[list[int]] = []
        waiting = sorted(places, key=lambda p: len(self._ids[p]))
        while waiting:
            longest = max(len(self._ids[p]) + int(self._room[p]) for p in waiting)
            size = max(1, min(self._kept // longest, self._tokens))
            n_waves = -(-len(waiting) // size)
            size = -(-len(waiting) // n_waves)
            waves.append(waiting[:size])
            waiting = waiting[size:]
        return waves

    @property
    def _tokens(self) -> int:
        return self._model.pass_tokens()

    @property
    def _kept(self) -> int:
        return KEPT_TOKENS.get(self._model.device.type, KEPT_TOKENS_OF_OTHERS)

    def _parts(self, places: Sequence[int]) -> list[list[int]]:
        """Places of prompts of one length each, as many as a pass takes; short ones first."""
        groups: dict[int, list[int]] = defaultdict(list)
        for place in places:
            groups[len(self._ids[place])].append(place)
        parts: list[list[int]] = []
        for length, own in sorted(groups.items()):
            size = max(1, self._tokens // length)
            parts += [own[first : first + size] for first in range(0, len(own), size)]
        return parts

    def _write(self, wave: Sequence[int]) -> None:
        waiting = self._parts(wave)
        streams: list[_Stream] = []
        length = 0
        # A sharded model makes as many passes as the rank that has most.
        while self._model.passes(int(bool(streams or waiting))):
            length = length + 1 if streams or not waiting else len(self._ids[waiting[0][0]])
            while waiting and len(self._ids[waiting[0][0]]) == length:
                streams.append(self._beginning(waiting.pop(0)))
            for _ in range(self._model.passes(len(streams)) - len(streams)):
                self._pass_of_nothing()
            for stream in streams:
                self._step(stream)
            streams = self._together([s for s in streams if bool(s.running.any())])

    def _beginning(self, places: Sequence[int]) -> _Stream:
        ids = torch.stack([self._ids[p] for p in places]).to(self._model.device)
        return _Stream(
            places=torch.tensor(places),
            steps=torch.zeros(len(places), dtype=torch.long),
            running=torch.ones(len(places), dtype=torch.bool),
            begun=torch.full((len(places),), self._rule.blank is None),
            state={"input_ids": ids},
        )

    def _pass_of_nothing(self) -> None:
        nothing = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
        with self._model.weights.without_overlay():
            self._model.model(input_ids=nothing, use_cache=False, logits_to_keep=1)

    def _step(self, stream: _Stream) -> None:
        """One more token of every text of a stream."""
        rule = self._rule
        output: Any = self._model.model(**stream.state, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1].to(self._model.compute_dtype)
        if rule.choose is None:
            token = logits.argmax(-1)
        else:
            token = rule.choose(logits, stream.places.tolist(), stream.steps.tolist())
        # Together, so that a step waits for the device once.
        token, fine = torch.stack((token, usable(logits).to(token))).cpu()
        self.broken[stream.places] |= stream.running & (fine == 0)
        if rule.blank is not None:
            stream.begun |= ~torch.tensor([rule.blank(t) for t in token.tolist()])
        if rule.stop is not None:
            ends = torch.tensor([rule.stop(t) for t in token.tolist()])
            stream.running &= ~(stream.begun & ends)
        written = stream.places[stream.running], stream.steps[stream.running]
        self.written[written] = token[stream.running]
        if rule.last is not None:
            stream.running &= ~torch.tensor([rule.last(t) for t in token.tolist()])
        stream.steps += 1
        stream.running &= stream.steps < self._room[stream.places]
        stream.state = {
            "input_ids": token[:, None].to(self._model.device),
            "past_key_values": output.past_key_values,
        }

    def _together(self, streams: Sequence[_Stream]) -> list[_Stream]:
        """Streams as one, without the texts that have ended; as they are, where that cannot be."""
        # An overlay knows the rows of its pass by their places.
        if self._model.overlay is not None or not all(
            _is_plain(s.state["past_key_values"]) for s in streams
        ):
            return list(streams)
        for stream in streams:
            if not bool(stream.running.all()):
                _keep_running(stream)
        return [_joined(streams)] if len(streams) > 1 else list(streams)


def _is_plain(cache: Any) -> bool:
    """Whether what is kept of every row lies in keys and values of its own, row by row."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return type(cache) is DynamicCache and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def _keep_running(stream: _Stream) -> None:
    rows = stream.running.nonzero().flatten()
    stream.state["past_key_values"].batch_select_indices(rows.to(stream.state["input_ids"].device))
    stream.state["input_ids"] = stream.state["input_ids"][rows.to(stream.state["input_ids"].device)]
    for name in ("places", "steps", "begun", "running"):
        setattr(stream, name, getattr(stream, name)[rows])


def _joined(streams: Sequence[_Stream]) -> _Stream:
    """Streams of one length as one, which takes the first one's cache."""
    caches = [s.state["past_key_values"] for s in streams]
    for i, layer in enumerate(caches[0].layers):
        if layer.get_seq_length() > 0:
            layer.keys = torch.cat([cache.layers[i].keys for cache in caches])
            layer.values = torch.cat([cache.layers[i].values for cache in caches])
    return _Stream(
        **{
            name: torch.cat([getattr(s, name) for s in streams])
            for name in ("places", "steps", "running", "begun")
        },
        state={
            "input_ids": torch.cat([s.state["input_ids"] for s in streams]),
            "past_key_values": caches[0],
        },
    )
