"""Sites where a value vector enters the model, and the part of the model that runs above them.

A site adds δ at one position of every sample. What lies below is a constant of the sample while δ
is optimised, so it runs once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from rledit.families import layer_index
from rledit.lazy_torch import Tensor, nn, torch
from rledit.locate.restart import decoder_layers, states_above, stopping_after
from rledit.locate.suffix import Continuation, PrefixStates
from rledit.micro_batches import MicroBatch
from rledit.model import EditableModel
from rledit.tokenization import Sample


class Site(Protocol):
    """A place where δ is added."""

    def begin(self, samples: Sequence[Sample], positions: Tensor) -> Tensor:
        """(samples, hidden) values at the positions before any change; keeps what passes need."""
        ...

    @property
    def parts(self) -> Sequence[Sample]:
        """What of each sample passes run; to be cut into micro-batches."""
        ...

    def states(self, micro_batch: MicroBatch, deltas: Tensor) -> Tensor:
        """(rows, hidden) of a pass with `deltas` (b, hidden) added; the micro-batch is of the
        parts.

        They are what the output embedding would see, see `PrefixCache.logits_of`.
        """
        ...


class BlockOutput:
    """The output of a decoder layer: passes run the layers above, from δ's position on.

    Args:
        model: The model.
        layer: The decoder layer.
    """

    def __init__(self, model: EditableModel, layer: int) -> None:
        self._model = model
        self._layer = layer
        self._ends: list[Tensor] = []
        self._before: PrefixStates | None = None
        self._known: WeakKeyDictionary[MicroBatch, tuple[Tensor, Continuation]] = (
            WeakKeyDictionary()
        )
        self.parts: Sequence[Sample] = ()

    @torch.no_grad()
    def begin(self, samples: Sequence[Sample], positions: Tensor) -> Tensor:
        """Run the samples up to the layer, and what lies before the positions to the top."""
        hidden = self._below(samples)
        places = positions.tolist()
        self._ends = [h[p:] for h, p in zip(hidden, places, strict=True)]
        self.parts = [
            Sample(s.input_ids[p:], s.labels[p:]) for s, p in zip(samples, places, strict=True)
        ]
        self._before = PrefixStates(self._model, self._layer, hidden, positions)
        return torch.stack([end[0] for end in self._ends]).to(self._model.compute_dtype)

    def states(self, micro_batch: MicroBatch, deltas: Tensor) -> Tensor:
        """Run the layers above."""
        if micro_batch not in self._known:
            self._known[micro_batch] = self._continue(micro_batch)
        hidden, continuation = self._known[micro_batch]
        changed = _added(hidden, torch.zeros(len(hidden), dtype=torch.long), deltas)
        return states_above(
            self._model, self._layer, changed, micro_batch, **continuation.arguments()
        )

    def _continue(self, micro_batch: MicroBatch) -> tuple[Tensor, Continuation]:
        """(b, S, hidden) ends of a micro-batch, and how they follow what lies before."""
        if self._before is None:
            raise RuntimeError("begin comes before the first pass")
        ends = [self._ends[i] for i in micro_batch.index.tolist()]
        lengths = torch.tensor([len(end) for end in ends])
        return nn.utils.rnn.pad_sequence(ends, batch_first=True), self._before.continuation(
            micro_batch.index, lengths
        )

    def _below(self, samples: Sequence[Sample]) -> list[Tensor]:
        """(T, hidden) output of the layer for each sample."""
        model = self._model
        found: list[Tensor] = [torch.empty(0)] * len(samples)
        taken: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            taken.append(output[0] if isinstance(output, tuple) else output)

        handle = decoder_layers(model)[self._layer].register_forward_hook(keep)
        try:
            with stopping_after(model, self._layer):
                for micro_batch in model.micro_batches(samples):
                    model.prefix_cache.states(micro_batch, narrow=False)
                    # Recording the prefix cache may have run part of this layer before.
                    hidden = taken[-1]
                    taken.clear()
                    for b, i in enumerate(micro_batch.index.tolist()):
                        found[i] = hidden[b, : len(samples[i])].clone()
        finally:
            handle.remove()
        return found


class LinearOutput:
    """The output of a target module: passes begin at its layer's MLP.

    Args:
        model: The model.
        module: Name of the linear.
    """

    def __init__(self, model: EditableModel, module: str) -> None:
        self._model = model
        self._module = module
        # The prefix cache may run the last MLP on answer rows only, which leaves δ's position out.
        self._narrow = not module.startswith(model.prefix_cache.narrow_prefix)
        self._positions = torch.empty(0)
        self.parts: Sequence[Sample] = ()

    @torch.no_grad()
    def begin(self, samples: Sequence[Sample], positions: Tensor) -> Tensor:
        """Take the linear's present outputs."""
        model = self._model
        self._positions, self.parts = positions, samples
        values: list[Tensor] = [torch.empty(0)] * len(samples)
        taken: list[Tensor] = []
        handle = model.linear(self._module).register_forward_hook(
            lambda _, __, output: taken.append(output)
        )
        with ExitStack() as stack:
            stack.callback(handle.remove)
            stack.enter_context(stopping_after(model, layer_index(model.family, self._module)))
            for micro_batch in model.micro_batches(samples):
                model.prefix_cache.states(micro_batch, narrow=False)
                output = taken.pop()
                for b, i in enumerate(micro_batch.index.tolist()):
                    values[i] = output[b, int(positions[i])]
        return torch.stack(values).to(model.compute_dtype)

    def states(self, micro_batch: MicroBatch, deltas: Tensor) -> Tensor:
        """Run from the linear's layer up."""
        positions = self._positions[micro_batch.index]
        handle = self._model.linear(self._module).register_forward_hook(
            lambda _, __, output: _added(output, positions, deltas)
        )
        try:
            return self._model.prefix_cache.states(micro_batch, narrow=self._narrow)
        finally:
            handle.remove()


def _added(hidden: Tensor, positions: Tensor, deltas: Tensor) -> Tensor:
    """(b, T, hidden) with a row of `deltas` added at one position of every sample."""
    samples = torch.arange(len(hidden), device=hidden.device)
    place = (samples, positions.to(hidden.device))
    return hidden.index_put(place, hidden[place] + deltas.to(hidden.dtype))
