"""Passes over the end of prompts only, for value vectors: nothing before δ's position changes.

Models are causal, so in the layers above a site the tokens before δ's position keep their keys and
values. They are computed once; afterwards a pass runs the tokens from that position on, which are
a few out of many where contexts stand before the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rledit.lazy_torch import Tensor, nn, torch
from rledit.locate.restart import decoder_layers, states_above
from rledit.model import EditableModel
from rledit.tokenization import IGNORED, Sample


@dataclass(frozen=True, eq=False)
class Continuation:
    """Positions, mask and states with which the ends of some samples follow their beginnings.

    Attributes:
        positions: (b, S) int64.
        mask: (b, P + S) int64, 1 where there is a token; None without beginnings.
        states: Keys and values of every layer, (b, heads, P, width) each.
    """

    positions: Tensor
    mask: Tensor | None
    states: Sequence[tuple[Tensor, Tensor]]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the model; the cache among them serves one pass."""
        if self.mask is None:
            return {"position_ids": self.positions}
        # Plans read the editors' settings, and need no model's classes.
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache()
        for keys, values in self.states:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            # Passes concatenate to these, which makes new tensors.
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return {
            "position_ids": self.positions,
            "attention_mask": self.mask,
            "past_key_values": cache,
        }


class PrefixStates:
    """Attention keys and values of the layers above a layer, for the tokens before a position.

    Samples are padded on the left, so that their ends begin at the same column.

    Args:
        model: The model, with the weights it has now.
        layer: The layer whose output the passes begin with.
        hidden: Its output for each sample, (T_i, hidden).
        lengths: (samples,) int64, tokens before the position of each.
    """

    def __init__(
        self, model: EditableModel, layer: int, hidden: Sequence[Tensor], lengths: Tensor
    ) -> None:
        self._lengths = lengths.to(model.device)
        self._counts: list[int] = lengths.tolist()  # known to the host, which need not ask again
        self._layer = layer
        self._n_layers = len(decoder_layers(model))
        self._width = max(self._counts)
        self._states: dict[int, tuple[Tensor, Tensor]] = {}
        if self._width and layer + 1 < self._n_layers:
            self._record(model, hidden)

    @torch.no_grad()
    def _record(self, model: EditableModel, hidden: Sequence[Tensor]) -> None:
        """One pass over the beginnings."""
        from transformers import DynamicCache

        begun = [_beginning(h, length) for h, length in zip(hidden, self._counts, strict=True)]
        for micro_batch in model.micro_batches(begun):
            padded = nn.utils.rnn.pad_sequence(
                [hidden[i][: len(begun[i])] for i in micro_batch.index.tolist()], batch_first=True
            )
            cache = DynamicCache()
            states_above(model, self._layer, padded, micro_batch, past_key_values=cache)
            for i in range(self._layer + 1, self._n_layers):
                self._keep(i, cache.layers[i].keys, cache.layers[i].values, micro_batch.index)

    def _keep(self, layer: int, keys: Tensor, values: Tensor, index: Tensor) -> None:
        if layer not in self._states:
            shape = (len(self._lengths), keys.shape[1], self._width)
            self._states[layer] = (
                keys.new_zeros(*shape, keys.shape[-1]),
                values.new_zeros(*shape, values.shape[-1]),
            )
        for whole, part in zip(self._states[layer], (keys, values), strict=True):
            for b, i in enumerate(index.tolist()):
                length = self._counts[i]
                whole[i, :, self._width - length :] = part[b, :, :length]

    def continuation(self, index: Tensor, lengths: Tensor) -> Continuation:
        """What the model has to be told to continue these samples.

        Args:
            index: (b,) int64, the samples.
            lengths: (b,) int64, tokens of each end; ends are padded on the right.
        """
        device = self._lengths.device
        steps = torch.arange(int(lengths.max()), device=device)
        width = max(self._counts[i] for i in index.tolist())
        index, lengths = index.to(device), lengths.to(device)
        before = self._lengths[index]
        # Padding repeats the last position: tables of positions have no more than the model's.
        positions = before[:, None] + torch.minimum(steps, lengths[:, None] - 1)
        if not self._states:
            return Continuation(positions, None, [])
        columns = torch.arange(width, device=device)
        seen = columns >= width - before[:, None]
        mask = torch.cat([seen, steps < lengths[:, None]], dim=1)
        # Layers that do not run hold nothing, but the first one tells the cache's length.
        nothing = torch.zeros(1, 1, width, 1, device=device)
        states = [(nothing, nothing)] * self._n_layers
        for i, (keys, values) in self._states.items():
            start = self._width - width
            states[i] = (keys[index, :, start:], values[index, :, start:])
        return Continuation(positions, mask.long(), states)


def _beginning(hidden: Tensor, length: int) -> Sample:
    """A proxy model sample for the tokens before a position; never empty."""
    width = min(max(1, length), len(hidden))
    labels = torch.full((width,), IGNORED)
    labels[-1] = 0
    return Sample(torch.zeros(width, dtype=torch.long), labels)
