"""Passes that stop above a layer, or begin with given hidden states above one.

Layers that need not run are swapped for pass-through modules during a call, so masks, rotary
positions and soft caps stay those of the Hugging Face implementation (see `rledit.prefix_cache`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rledit.lazy_torch import Tensor, nn
from rledit.micro_batches import MicroBatch
from rledit.model import EditableModel


def decoder_layers(model: EditableModel) -> nn.ModuleList:
    """The list of decoder layers."""
    return model.model.get_submodule(model.family.layers)  # type: ignore[return-value]


@contextmanager
def stopping_after(model: EditableModel, layer: int) -> Iterator[None]:
    """Skip the decoder layers above `layer` inside the context."""
    from rledit.stand_in_modules import Emit

    layers = decoder_layers(model)
    skip = Emit(model.family.layer_returns_tuple)
    with _replaced(layers, {i: skip for i in range(layer + 1, len(layers))}):
        yield


def states_above(
    model: EditableModel, layer: int, hidden: Tensor, micro_batch: MicroBatch, **arguments: Any
) -> Tensor:
    """What a pass that begins with the output of a layer ends with, before the output embedding.

    MLPs run on what is not padding, and the last one on answer rows.

    Args:
        model: The model.
        layer: The layer whose output is given.
        hidden: (b, T, hidden), its output for the micro-batch's samples; may carry a graph.
        micro_batch: The samples.
        **arguments: More arguments of the model, such as positions and cached states.

    Returns:
        (rows, hidden), for `PrefixCache.logits_of`.
    """
    from rledit.stand_in_modules import Emit

    rows, real = micro_batch.rows.to(hidden.device), micro_batch.real_rows()[0].to(hidden.device)
    layers = decoder_layers(model)
    as_tuple = model.family.layer_returns_tuple
    stand_ins: dict[int, nn.Module] = {i: Emit(as_tuple) for i in range(layer)}
    stand_ins[layer] = Emit(as_tuple, hidden)
    with ExitStack() as stack:
        states = stack.enter_context(model.prefix_cache.before_output(rows))
        for i in range(layer + 1, len(layers) - 1):
            stack.enter_context(model.prefix_cache.narrow_mlp(i, real))
        if layer + 1 < len(layers):
            stack.enter_context(model.prefix_cache.narrow_last_mlp(rows))
        stack.enter_context(_replaced(layers, stand_ins))
        use_cache = "past_key_values" in arguments
        model.model(inputs_embeds=hidden, use_cache=use_cache, **arguments)
    return states[0]


@contextmanager
def _replaced(layers: nn.ModuleList, stand_ins: dict[int, nn.Module]) -> Iterator[None]:
    whole = {i: layers[i] for i in stand_ins}
    for i, stand_in in stand_ins.items():
        layers[i] = stand_in
    try:
        yield
    finally:
        for i, layer in whole.items():
            layers[i] = layer
