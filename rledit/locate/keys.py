"""Inputs and outputs of modules at the subject's last token, batched."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rledit.families import layer_index
from rledit.lazy_torch import Tensor, nn, torch
from rledit.locate.requests import Request
from rledit.locate.restart import decoder_layers, stopping_after
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.tokenization import Sample


def subject_keys(
    model: EditableModel, requests: Sequence[Request], modules: Sequence[str], weights: Tensor
) -> dict[str, Tensor]:
    """Keys of edits at linear layers: their inputs at the subject's last token, averaged over
    contexts.

    Args:
        model: The model, with the weights it has now.
        requests: The edits.
        modules: The linear layers.
        weights: (contexts,), see `Contexts.weights`.

    Returns:
        Module → (edits, d_in), compute precision.
    """
    samples = [sample for request in requests for sample in request.keys]
    seen = observe(model, samples, modules)
    shape = (len(requests), len(weights))
    average = weights.to(model.device, model.compute_dtype)
    return {
        name: torch.einsum("ecd,c->ed", rows.view(*shape, -1), average)
        for name, rows in seen.inputs.items()
    }


def block_values(model: EditableModel, requests: Sequence[Request], layer: int) -> Tensor:
    """(edits, hidden) output of a decoder layer at the subject's last token of the bare prompt."""
    return observe(model, [r.keys[0] for r in requests], (), block=layer).block


@torch.no_grad()
def stream_gain(model: EditableModel, requests: Sequence[Request], module: str) -> Tensor | None:
    """What a change of the residual stream costs at a linear's output, feature by feature.

    Most families add the linear's output to the stream as it is. Where a norm n = g ⊙ u / rms(u)
    stands between, a change r of the stream asks for u to change by r ⊙ rms(u) / g: that gives the
    direction of n + r exactly, and its length as far as the norm lets it. Where the output is
    scaled by s on its way, a change asks for r / s.

    Returns:
        (edits, d_out) rms(u) / (g s) at the bare prompts, or 1 / s; None where the output joins
        the stream as it is.
    """
    path, scale = model.family.norm_after_mlp, model.family.residual_scale
    if path is None:
        if scale == 1:
            return None
        shape = (len(requests), model.shape(module)[1])
        return torch.full(shape, 1 / scale, dtype=model.compute_dtype, device=model.device)
    layer = layer_index(model.family, module)
    norm = decoder_layers(model)[layer].get_submodule(path)
    taken: list[tuple[Tensor, Tensor]] = []
    handle = norm.register_forward_hook(lambda _, args, output: taken.append((args[0], output)))
    gains: list[Tensor] = []
    order: list[Tensor] = []
    try:
        first = [request.keys[0] for request in requests]
        for micro_batch in model.micro_batches(first, least=SINGLE_PASS_TOKENS):
            with stopping_after(model, layer):
                model.prefix_cache.logits(micro_batch, narrow=False)
            rows = micro_batch.rows.to(model.device)
            before, after = (t.flatten(0, -2)[rows].to(model.compute_dtype) for t in taken[-1])
            # A zero stays zero under any gain.
            gains.append(torch.where(after == 0, 0.0, before / (scale * after)))
            order.append(micro_batch.index)
    finally:
        handle.remove()
    return torch.cat(gains)[torch.argsort(torch.cat(order)).to(model.device)]


@dataclass(eq=False)
class Seen:
    """Rows at the labelled position of each sample, in sample order.

    Attributes:
        inputs: Linear → (samples, d_in).
        outputs: Linear → (samples, d_out), bias included.
        block: (samples, hidden), output of the decoder layer asked for.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    block: Tensor = field(default_factory=lambda: torch.empty(0))


@torch.no_grad()
def observe(
    model: EditableModel,
    samples: Sequence[Sample],
    modules: Sequence[str],
    block: int | None = None,
) -> Seen:
    """Run samples up to the highest module asked for, and take its rows.

    Args:
        model: The model.
        samples: Samples with one labelled row each.
        modules: Linear layers whose input and output are wanted.
        block: A decoder layer whose output is wanted.
    """
    tops = [layer_index(model.family, name) for name in modules]
    tops += [] if block is None else [block]
    parts: dict[str, list[Tensor]] = {}
    order: list[Tensor] = []
    for micro_batch in model.micro_batches(samples, least=SINGLE_PASS_TOKENS):
        rows = micro_batch.rows.to(model.device)
        with ExitStack() as stack:
            stack.enter_context(stopping_after(model, max(tops)))
            taken = _hooks(model, modules, block, stack)
            model.prefix_cache.logits(micro_batch, narrow=False)
        for name, tensor in taken.items():
            picked = tensor.flatten(0, -2)[rows].to(model.compute_dtype)
            parts.setdefault(name, []).append(picked)
        order.append(micro_batch.index)
    place = torch.argsort(torch.cat(order)).to(model.device)
    whole = {name: torch.cat(rows)[place] for name, rows in parts.items()}
    return Seen(
        inputs={name: whole[f"in:{name}"] for name in modules},
        outputs={name: whole[f"out:{name}"] for name in modules},
        block=whole.get("block", torch.empty(0)),
    )


def _hooks(
    model: EditableModel, modules: Sequence[str], block: int | None, stack: ExitStack
) -> dict[str, Tensor]:
    taken: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            taken[f"in:{name}"] = args[0]
            taken[f"out:{name}"] = output

        return hook

    def keep_block(_: nn.Module, __: Any, output: Any) -> None:
        taken["block"] = output[0] if isinstance(output, tuple) else output

    for name in modules:
        stack.callback(model.linear(name).register_forward_hook(keep(name)).remove)
    if block is not None:
        handle = decoder_layers(model)[block].register_forward_hook(keep_block)
        stack.callback(handle.remove)
    return taken
