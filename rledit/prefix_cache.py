"""Prefix cache: runs each prompt once up to the first edited layer, and restarts there.

No edit changes a layer below the first edited one, nor that layer's attention, so the hidden states
that enter the layer and the output of its attention are constants of the prompt. Three savings,
none of which changes a number beyond round-off:

- layers below the first edited one, and its attention, run once per prompt;
- the output embedding sees answer positions only;
- so does the MLP of the last layer, as nothing after it looks at other positions.

The model itself is left whole: skipped layers are swapped for pass-through modules during a call,
so masks, rotary positions and soft caps stay those of the Hugging Face implementation.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rledit.families import Family
from rledit.micro_batches import MicroBatch
from rledit.tokenization import Sample

logger = logging.getLogger(__name__)

Prefix = tuple[Tensor, Tensor]
"""Hidden states entering the first edited layer, and its attention's output: both (T, hidden)."""


@dataclass(frozen=True, eq=False)
class Top:
    """What a pass ends with at the answer rows of a micro-batch.

    Attributes:
        states: (rows, hidden), what the output embedding sees, detached: logits in small.
        logits: (rows, vocabulary), in the model's output type.
    """

    states: Tensor
    logits: Tensor


class _PassThrough(nn.Module):
    """Stands in for a decoder layer or MLP that need not run."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self._as_tuple = as_tuple

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states, None) if self._as_tuple else hidden_states


class _Replay(nn.Module):
    """Stands in for an attention block whose output is known."""

    def __init__(self, output: Tensor, returns: int | None) -> None:
        super().__init__()
        self._output = output
        self._returns = returns

    def forward(self, *_: Any, **__: Any) -> Any:
        if self._returns is None:
            return self._output
        return self._output, *[None] * (self._returns - 1)


class PrefixCache:
    """Runs a causal language model from its first edited layer up.

    Args:
        model: The language model (evaluation mode, frozen). Its `forward` is called as it is, so
            a sharded module works the same way.
        family: The model's family.
        first_layer: The lowest edited layer.
        cache_bytes: Budget of the prefix cache; the least recently used prompts leave first and
            are computed again when needed. 0 switches the cache off.
        cache_device: Where cached prefixes lie; None: in host memory.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        first_layer: int,
        *,
        cache_bytes: int = 2 << 30,
        cache_device: torch.device | None = None,
    ) -> None:
        self._model = model
        self._family = family
        self._layers: nn.ModuleList = model.get_submodule(family.layers)  # type: ignore[assignment]
        self.first_layer = first_layer
        first = next(model.parameters())
        self._device = first.device
        self._element_size = first.element_size()
        self._cache: OrderedDict[bytes, Prefix] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cache_device = cache_device or torch.device("cpu")
        self._cached = 0
        self._full = False
        self.hits = 0
        self.misses = 0

    @property
    def hit_rate(self) -> float:
        """Share of prompts found in the cache since the start."""
        return self.hits / max(1, self.hits + self.misses)

    @property
    def narrow_prefix(self) -> str:
        """Name prefix of the modules that see answer rows only in a narrow pass."""
        return f"{self._family.layers}.{len(self._layers) - 1}.{self._family.mlp}."

    def clear(self) -> None:
        """Forget all prefixes.

        The last bits of a prefix depend on which prompts it was recorded with, so work that must
        repeat bit by bit begins with an empty cache.
        """
        self._cache.clear()
        self._cached = 0

    def forget(self, keys: Collection[bytes]) -> None:
        """Forget the prefixes of these prompts, see `rledit.tokenization.Sample.key`."""
        for key in keys:
            if (prefix := self._cache.pop(key, None)) is not None:
                self._cached -= sum(t.nbytes for t in prefix)

    def keep(self, keys: Collection[bytes]) -> None:
        """Forget the prefixes of all prompts but these."""
        self.forget(self._cache.keys() - keys)

    def fits(self, samples: Sequence[Sample]) -> bool:
        """Whether the budget holds the prefixes of all these samples at once."""
        config: Any = self._model.config
        unique = {s.key: len(s) for s in samples}
        n_bytes = 2 * config.hidden_size * self._element_size * sum(unique.values())
        return n_bytes <= self._cache_bytes

    def prefetch(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Record the prefixes of micro-batches that are not in the cache yet."""
        for micro_batch in micro_batches:
            self._prefix(micro_batch)

    def logits(self, micro_batch: MicroBatch, *, narrow: bool = True) -> Tensor:
        """Logits at the micro-batch's answer rows, differentiable where gradients are enabled.

        Args:
            micro_batch: The samples to run.
            narrow: Run the last layer's MLP on answer rows only. Off where something inside that
                MLP has to see every position.

        Returns:
            (rows, vocabulary), in the model's output type.
        """
        return self.run(micro_batch, narrow=narrow).logits

    def run(self, micro_batch: MicroBatch, *, narrow: bool = True) -> Top:
        """As `logits`, with the states that the output embedding saw."""
        prefix, rows = self._prefix(micro_batch), micro_batch.rows.to(self._device)
        with self._output_rows(rows) as states:
            logits = self._pass(prefix, rows, narrow)
        return Top(states=states[0], logits=logits.reshape(len(rows), -1))

    def states(self, micro_batch: MicroBatch, *, narrow: bool = True) -> Tensor:
        """As `logits`, short of the output embedding: (rows, hidden), to go into `logits_of`."""
        prefix, rows = self._prefix(micro_batch), micro_batch.rows.to(self._device)
        with self.before_output(rows) as states:
            self._pass(prefix, rows, narrow)
        return states[0]

    def logits_of(self, states: Tensor) -> Tensor:
        """Logits (rows, vocabulary) of the states (rows, hidden) that an earlier pass ended with.

        The model's own forward runs, every layer passed through, so its soft caps apply. Gradients
        reach the states where they are enabled.
        """

        def replace(_: nn.Module, __: tuple[Any, ...]) -> tuple[Tensor]:
            return (states.unsqueeze(0),)

        head: nn.Module = self._model.get_output_embeddings()  # type: ignore[operator]
        with (
            self._skipping(range(len(self._layers))),
            _hooked(head.register_forward_pre_hook(replace)),
        ):
            output = self._model(inputs_embeds=states[None, :1], use_cache=False)
        logits: Tensor = output.logits
        return logits.reshape(len(states), -1)

    def _pass(self, prefix: Prefix, rows: Tensor, narrow: bool) -> Tensor:
        """Logits of the model, run from the first edited layer's MLP up."""
        hidden, attention = prefix
        with ExitStack() as stack:
            stack.enter_context(self._restarted(hidden, attention))
            if narrow:
                stack.enter_context(self.narrow_last_mlp(rows))
            logits: Tensor = self._model(inputs_embeds=hidden, use_cache=False).logits
        return logits

    def _prefix(self, micro_batch: MicroBatch) -> Prefix:
        """Padded (b, T, hidden) prefixes of a micro-batch, from the cache where it has them."""
        missing = [b for b, s in enumerate(micro_batch.samples) if s.key not in self._cache]
        self.hits += len(micro_batch.samples) - len(missing)
        self.misses += len(missing)
        if self._cache_bytes == 0:
            return self._record(micro_batch.input_ids())
        fresh: dict[bytes, Prefix] = {}
        if missing:
            ids = pad_sequence(
                [micro_batch.samples[b].input_ids for b in missing], batch_first=True
            )
            hidden, attention = self._record(ids)
            for i, b in enumerate(missing):
                sample = micro_batch.samples[b]
                fresh[sample.key] = (
                    self._keep(hidden[i, : len(sample)]),
                    self._keep(attention[i, : len(sample)]),
                )
        found = [fresh.get(s.key) or self._touch(s.key) for s in micro_batch.samples]
        for key, prefix in fresh.items():
            self._insert(key, prefix)
        return (
            pad_sequence([p[0] for p in found], batch_first=True).to(self._device),
            pad_sequence([p[1] for p in found], batch_first=True).to(self._device),
        )

    def _keep(self, prefix: Tensor) -> Tensor:
        return prefix.to(self._cache_device, copy=True)

    def _touch(self, key: bytes) -> Prefix:
        self._cache.move_to_end(key)
        return self._cache[key]

    def _insert(self, key: bytes, prefix: Prefix) -> None:
        self._cache[key] = prefix
        self._cached += sum(t.nbytes for t in prefix)
        if self._cached > self._cache_bytes and not self._full:
            self._full = True
            logger.warning(
                "the prefix cache is full at %.2f GB (hit rate so far %.2f): prompts used least "
                "recently will run through the layers below again; Execution.cache_bytes is the "
                "budget",
                self._cache_bytes / 1e9,
                self.hit_rate,
            )
        while self._cached > self._cache_bytes and self._cache:
            _, old = self._cache.popitem(last=False)
            self._cached -= sum(t.nbytes for t in old)

    @torch.no_grad()
    def _record(self, ids: Tensor) -> Prefix:
        """Run the layers below the first edited one, and its attention."""
        seen: dict[str, Tensor] = {}
        layer = self._layers[self.first_layer]

        def keep_input(_: nn.Module, args: tuple[Any, ...], __: dict[str, Any]) -> None:
            seen["hidden"] = args[0]

        def keep_attention(_: nn.Module, __: Any, output: Any) -> None:
            seen["attention"] = output[0] if isinstance(output, tuple) else output

        with ExitStack() as stack:
            above = range(self.first_layer + 1, len(self._layers))
            stack.enter_context(self._skipping(above))
            stack.enter_context(_swapped(layer, self._family.mlp, _PassThrough(as_tuple=False)))
            stack.enter_context(self._output_rows(torch.zeros(1, dtype=torch.long)))
            stack.enter_context(
                _hooked(layer.register_forward_pre_hook(keep_input, with_kwargs=True))
            )
            attention = layer.get_submodule(self._family.attention)
            stack.enter_context(_hooked(attention.register_forward_hook(keep_attention)))
            self._model(input_ids=ids.to(self._device), use_cache=False)
        return seen["hidden"], seen["attention"]

    @contextmanager
    def _restarted(self, hidden: Tensor, attention: Tensor) -> Iterator[None]:
        layer = self._layers[self.first_layer]

        def replace_input(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (hidden, *args[1:]), kwargs

        with (
            self._skipping(range(self.first_layer)),
            _swapped(
                layer,
                self._family.attention,
                _Replay(attention, self._family.attention_returns),
            ),
            _hooked(layer.register_forward_pre_hook(replace_input, with_kwargs=True)),
        ):
            yield

    @contextmanager
    def _skipping(self, layers: range) -> Iterator[None]:
        whole = {i: self._layers[i] for i in layers}
        skip = _PassThrough(self._family.layer_returns_tuple)
        for i in layers:
            self._layers[i] = skip
        try:
            yield
        finally:
            for i, layer in whole.items():
                self._layers[i] = layer

    @contextmanager
    def _output_rows(self, rows: Tensor) -> Iterator[list[Tensor]]:
        """Let the output embedding see these rows only, and keep what it sees."""
        head: nn.Module = self._model.get_output_embeddings()  # type: ignore[operator]
        states: list[Tensor] = []

        def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            chosen = args[0].flatten(0, -2)[rows]
            states.append(chosen.detach())
            return (chosen.unsqueeze(0),)

        with _hooked(head.register_forward_pre_hook(select)):
            yield states

    @contextmanager
    def before_output(self, rows: Tensor) -> Iterator[list[Tensor]]:
        """Keep these rows of what the output embedding would see, with their graph.

        It runs on no row at all, so several passes can share one through it, see `logits_of`.
        """
        head: nn.Module = self._model.get_output_embeddings()  # type: ignore[operator]
        states: list[Tensor] = []

        def take(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            states.append(args[0].flatten(0, -2).index_select(0, rows))
            return (args[0][:, :0].detach(),)

        with _hooked(head.register_forward_pre_hook(take)):
            yield states

    def narrow_last_mlp(self, rows: Tensor) -> AbstractContextManager[None]:
        """Run the last layer's MLP on these rows (of the flattened layout) only; others get 0."""
        return self.narrow_mlp(len(self._layers) - 1, rows)

    @contextmanager
    def narrow_mlp(self, layer: int, rows: Tensor) -> Iterator[None]:
        """Run a layer's MLP on these rows (of the flattened layout) only; others get 0."""
        mlp = self._layers[layer].get_submodule(self._family.mlp)
        shape: list[torch.Size] = []

        def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
            # Some MLPs are given the residual stream as well, and add it themselves.
            shape.append(args[0].shape)
            return tuple(a.flatten(0, -2).index_select(0, rows).unsqueeze(0) for a in args)

        def scatter(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            whole = output.new_zeros(shape[-1].numel() // shape[-1][-1], output.shape[-1])
            return whole.index_copy_(0, rows, output.squeeze(0)).view(*shape[-1][:-1], -1)

        with (
            _hooked(mlp.register_forward_pre_hook(gather)),
            _hooked(mlp.register_forward_hook(scatter)),
        ):
            yield


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _swapped(parent: nn.Module, path: str, stand_in: nn.Module) -> Iterator[None]:
    owner_path, _, name = path.rpartition(".")
    owner = parent.get_submodule(owner_path) if owner_path else parent
    whole: Callable[..., Any] = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, whole)
