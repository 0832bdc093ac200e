"""Records the inputs of a linear layer for prompts, bit by bit independent of other prompts.

An editor that keeps a memory beside the model compares prompts by the input of one linear. How a
matrix product adds up depends on the shapes of the pass, so the same prompt would give other last
bits in other company, and what is decided by them could change with it. Here every prompt runs by
itself, or in company that is known to change no bit (see `PrefixPasses.same_bits`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rledit.families import layer_index
from rledit.lazy_torch import Tensor, nn, torch
from rledit.prefix_passes import PrefixPasses
from rledit.prefix_store import passes_of_one_length
from rledit.stand_ins import hooked
from rledit.tokenization import Sample

if TYPE_CHECKING:
    from rledit.model import EditableModel

MANY = 64
"""Prompts of one length from which on it pays to try which passes change no bit."""


class PromptInputs:
    """Inputs of one linear layer, prompt by prompt.

    Passes begin at the bottom of the model and end at the linear's layer. What lies below an edited
    linear never changes, so a prompt need be run once.

    Args:
        model: The model.
        module: Name of the linear.
    """

    def __init__(self, model: EditableModel, module: str) -> None:
        self._model = model
        self._linear = model.linear(module)
        self._layer = layer_index(model.family, module)
        n_layers = len(model.model.get_submodule(model.family.layers))  # type: ignore[arg-type]
        # Tried from the second layer on: the lowest one is then run whole.
        self._tried = (
            PrefixPasses(model.model, model.family, max(1, self._layer)) if n_layers > 1 else None
        )

    @torch.no_grad()
    def of(self, prompts: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Place of each prompt and its inputs (tokens, d_in) in the model's type, in any order.

        Every rank of a sharded model makes this call.

        Args:
            prompts: (tokens,) int64 each.
        """
        samples = [Sample(ids, ids) for ids in prompts]
        place = {id(sample): i for i, sample in enumerate(samples)}
        many = {n for n, count in Counter(map(len, samples)).items() if count >= MANY}
        parts = list(passes_of_one_length(samples, lambda n: self._sizes(n) if n in many else ()))
        for i in range(self._model.passes(len(parts))):
            if i >= len(parts):
                self._run(torch.zeros(1, 1, dtype=torch.long))
                continue
            part, rows = parts[i]
            filler = [part[0]] * (rows - len(part))
            inputs = self._run(torch.stack([s.input_ids for s in part + filler]))
            for sample, own in zip(part, inputs, strict=False):
                yield place[id(sample)], own.clone()

    def _sizes(self, length: int) -> tuple[int, ...]:
        """Rows that a pass may have beside one; none where ranks would have to try together."""
        if self._tried is None or self._model.most_passes is not None:
            return ()
        return self._tried.same_bits(length)

    def _run(self, ids: Tensor) -> Tensor:
        """(b, T, d_in) inputs of the linear for prompts (b, T) of one length."""
        from rledit.locate.restart import stopping_after

        seen: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0].detach())

        with (
            stopping_after(self._model, self._layer),
            hooked(self._linear.register_forward_pre_hook(keep)),
        ):
            self._model.model(
                input_ids=ids.to(self._model.device), use_cache=False, logits_to_keep=1
            )
        return seen[0]
