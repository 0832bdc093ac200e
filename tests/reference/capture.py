"""Keys and value gradients of the edited modules, one loss group at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rledit.tokenization import IGNORED, Phase
from tests.reference.passes import gradient_of, group_cross_entropy, loss_groups


def reference_capture(
    model: nn.Module,
    phase: Phase,
    modules: Sequence[str],
    tokens: Literal["answer", "all"] = "answer",
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """Inputs K (n, d_in) and output gradients V (n, d_out) of each module, and the phase's loss.

    One padded forward and backward of the whole model per loss group. The modules' weights must
    require gradients; those gradients are computed on the way and dropped.
    """
    rows: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in modules}
    total = 0.0
    for inputs, labels in loss_groups(phase, model):
        chosen = labels != IGNORED if tokens == "answer" else inputs["attention_mask"].bool()
        seen: dict[str, Tensor] = {}
        hooks = [
            model.get_submodule(name).register_forward_hook(_recorder(name, chosen, rows, seen))
            for name in modules
        ]
        loss = group_cross_entropy(model(**inputs, use_cache=False).logits, labels)
        for hook in hooks:
            hook.remove()
        loss.backward()
        for name in modules:
            rows[name][1].append(gradient_of(seen[name])[chosen])
            model.get_submodule(name).weight.grad = None
        total += loss.item()
    return {
        name: (torch.cat(keys), torch.cat(grads)) for name, (keys, grads) in rows.items()
    }, total


def _recorder(
    name: str,
    chosen: Tensor,
    rows: dict[str, tuple[list[Tensor], list[Tensor]]],
    seen: dict[str, Tensor],
) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows[name][0].append(inputs[0].detach()[chosen])
        output.retain_grad()
        seen[name] = output

    return hook
