"""Passes of a language model that begin at its first edited layer, and the states they begin with.

Three savings, none of which changes a number beyond round-off:

- layers below the first edited one, and its attention, run once per prompt;
- the output embedding sees answer positions only;
- so does the MLP of the last layer, as nothing after it looks at other positions.

The model itself is left whole: skipped layers are swapped for pass-through modules during a call,
so masks, rotary positions and soft caps stay those of the Hugging Face implementation.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from rledit.families import Family
from rledit.lazy_torch import Tensor, nn, torch
from rledit.prefix_store import WORTHWHILE, Prefix, card
from rledit.stand_ins import hooked, swapped

logger = logging.getLogger(__name__)

LONG = 64
"""Tokens from which on a prompt by itself keeps a core busy."""
CARD_ROWS = 16
"""Rows of every pass on a card whose prompts are recorded to be kept; one of `WORTHWHILE`, which
are what a store notes."""
CARD_LONG = 512
"""Tokens from which on a prompt is recorded by itself there."""
_ENTRIES = 20_000
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, eq=False)
class Top:
    """What a pass ends with at the answer rows of a micro-batch.

    Attributes:
        states: (rows, hidden), what the output embedding sees, detached: logits in small.
        logits: (rows, vocabulary), in the model's output type.
    """

    states: Tensor
    logits: Tensor


class PrefixPasses:
    """Passes of one model from its first edited layer up, and up to it.

    Args:
        model: The language model (evaluation mode, frozen). Its `forward` is called as it is, so
            a sharded module works the same way.
        family: The model's family.
        first_layer: The lowest edited layer.
    """

    def __init__(self, model: nn.Module, family: Family, first_layer: int) -> None:
        self._model = model
        self._family = family
        self._layers: nn.ModuleList = model.get_submodule(family.layers)  # type: ignore[assignment]
        self.first_layer = first_layer
        self._device = next(model.parameters()).device
        self._same_bits: dict[int, tuple[int, ...]] = {}
        self._fixed_rows: dict[int, int] = {}

    @property
    def is_on_card(self) -> bool:
        """Whether the model lies elsewhere than in the host's memory."""
        return self._device.type != "cpu"

    @property
    def narrow_prefix(self) -> str:
        """Name prefix of the modules that see answer rows only in a narrow pass."""
        return f"{self._family.layers}.{len(self._layers) - 1}.{self._family.mlp}."

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
            hooked(head.register_forward_pre_hook(replace)),
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

    @torch.no_grad()
    def _record(self, ids: Tensor) -> Prefix:
        """Run the layers below the first edited one, and its attention."""
        from rledit.stand_in_modules import PassThrough

        seen: dict[str, Tensor] = {}
        layer = self._layers[self.first_layer]

        def keep_input(_: nn.Module, args: tuple[Any, ...], __: dict[str, Any]) -> None:
            seen["hidden"] = args[0]

        def keep_attention(_: nn.Module, __: Any, output: Any) -> None:
            seen["attention"] = output[0] if isinstance(output, tuple) else output

        with ExitStack() as stack:
            above = range(self.first_layer + 1, len(self._layers))
            stack.enter_context(self._skipping(above))
            stack.enter_context(swapped(layer, self._family.mlp, PassThrough(as_tuple=False)))
            stack.enter_context(self._output_rows(torch.zeros(0, dtype=torch.long)))
            stack.enter_context(
                hooked(layer.register_forward_pre_hook(keep_input, with_kwargs=True))
            )
            attention = layer.get_submodule(self._family.attention)
            stack.enter_context(hooked(attention.register_forward_hook(keep_attention)))
            self._model(input_ids=ids.to(self._device), use_cache=False)
        return seen["hidden"], seen["attention"]

    @contextmanager
    def _restarted(self, hidden: Tensor, attention: Tensor) -> Iterator[None]:
        from rledit.stand_in_modules import Replay

        layer = self._layers[self.first_layer]

        def replace_input(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (hidden, *args[1:]), kwargs

        with (
            self._skipping(range(self.first_layer)),
            swapped(
                layer,
                self._family.attention,
                Replay(attention, self._family.attention_returns),
            ),
            hooked(layer.register_forward_pre_hook(replace_input, with_kwargs=True)),
        ):
            yield

    @contextmanager
    def _skipping(self, layers: range) -> Iterator[None]:
        from rledit.stand_in_modules import PassThrough

        whole = {i: self._layers[i] for i in layers}
        skip = PassThrough(self._family.layer_returns_tuple)
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

        with hooked(head.register_forward_pre_hook(select)):
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

        with hooked(head.register_forward_pre_hook(take)):
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
            hooked(mlp.register_forward_pre_hook(gather)),
            hooked(mlp.register_forward_hook(scatter)),
        ):
            yield

    def fingerprint(self) -> str:
        """What a prefix depends on beside its tokens, as far as a probe tells.

        A hash of a made-up prompt's prefix: other weights below the first edited layer, another
        layer, precision or way of adding up give another one; and so does another kind of card.
        """
        total = hashlib.sha256(str(self.first_layer).encode())
        rows = 1
        if self.is_on_card:
            about = {**card(self._device), "rows": CARD_ROWS}
            total.update(json.dumps(about, sort_keys=True).encode())
            rows = self.fixed_rows(11)
        for part in self._record(self._made_up(1, 11).expand(rows, -1)):
            total.update(str(part.dtype).encode())
            total.update(part[:1].cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()[:32]

    def same_bits(self, length: int) -> tuple[int, ...]:
        """Rows of passes that give every prompt of a length the bits that it has by itself.

        How a matrix product or a soft-max adds up depends on the shapes and on the row's place, not
        on the numbers: it is tried with a made-up prompt that stands in every row, once for each
        shape, on so many numbers that another order of adding shows in some, and in the lowest
        layers, as all layers have matrices of the same shapes. Where a token's way through a layer
        depends on its company (experts with a capacity), no pass is taken but of one.
        """
        if length not in self._same_bits:
            alone = self._has_experts or length >= LONG
            tried = () if alone else sorted(WORTHWHILE, reverse=True)
            self._same_bits[length] = self._tried(length, tried)
        return self._same_bits[length]

    def fixed_rows(self, length: int) -> int:
        """Rows of every pass over prompts of a length on a card, filled up where they are fewer.

        A card has other kernels for other shapes, and is idle with a prompt by itself. In passes
        of one shape a prompt has the same bits in every row and company; that is tried, and where
        it is not so, prompts are recorded by themselves.
        """
        if length not in self._fixed_rows:
            alone = self._has_experts or length >= CARD_LONG
            if not alone and not self._rows_alike(length):
                alone = True
                logger.warning(
                    "on this card a prompt of %d tokens has other bits in other rows of a pass: "
                    "prompts of that length are recorded by themselves, which takes longer",
                    length,
                )
            self._fixed_rows[length] = 1 if alone else CARD_ROWS
        return self._fixed_rows[length]

    @property
    def _has_experts(self) -> bool:
        config: Any = self._model.config
        return any(getattr(config, name, 0) for name in _EXPERTS)

    def _rows_alike(self, length: int) -> bool:
        """Whether a prompt has the same bits in every row, and beside itself as beside others."""
        low = PrefixPasses(self._model, self._family, min(1, self.first_layer))
        own = self._made_up(1, length)
        one = torch.stack(low._record(own.expand(CARD_ROWS, -1)))
        alike = torch.equal(one, one[:, :1].expand_as(one))
        for first in (0, 1):
            ids = self._made_up(CARD_ROWS, length, seed=1)
            ids[first::2] = own
            among = torch.stack(low._record(ids))
            alike = alike and torch.equal(among[:, first::2], one[:, first::2])
        return alike

    def _tried(self, length: int, sizes: Sequence[int]) -> tuple[int, ...]:
        low = PrefixPasses(self._model, self._family, min(1, self.first_layer))
        config: Any = self._model.config
        fine, compared, seed = list(sizes), 0, 0
        while fine and compared < _ENTRIES:
            ids = self._made_up(1, length, seed)
            alone = torch.stack(low._record(ids))
            for size in fine.copy():
                together = torch.stack(low._record(ids.expand(size, -1)))
                if not torch.equal(together, alone.expand_as(together)):
                    fine.remove(size)
            # Of the smallest pass, which has the fewest rows to show a difference in.
            compared += 2 * min(sizes) * length * int(config.hidden_size)
            seed += 1
        return tuple(fine)

    def _made_up(self, size: int, length: int, seed: int = 0) -> Tensor:
        """(size, length) tokens that are always the same."""
        config: Any = self._model.config
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, config.vocab_size, (size, length), generator=generator)
