"""Keys and value gradients of the target modules, taken by hooks while the edit loss runs.

For each target module: K (n x d_in), its inputs, and V (n x d_out), the gradient of the edit loss
with respect to its output, at the positions that predict answer tokens (or at all positions).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rledit.finite import require_finite
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.tokenization import Phase

Tokens = Literal["answer", "all"]


@dataclass(frozen=True, eq=False)
class Captured:
    """Keys and value gradients of one phase.

    Attributes:
        keys: Module → K (n x d_in), compute precision, rows in sample order.
        values: Module → V (n x d_out).
        row_group: (n,) int64, loss group of each row.
        loss: The edit loss: sum over loss groups of the token-mean cross-entropy.
    """

    keys: dict[str, Tensor]
    values: dict[str, Tensor]
    row_group: Tensor
    loss: float


def capture(model: EditableModel, phase: Phase, tokens: Tokens = "answer") -> Captured:
    """Run the edit loss of a phase on the current model and take K and V.

    Args:
        model: The model; its weights stay frozen and get no gradient.
        phase: The edit prompts.
        tokens: Take rows at the positions that predict answer tokens, or at all real positions.

    Returns:
        K and V of every edited module, rows ordered by sample and position.

    Raises:
        NonFiniteError: The loss is not finite; names the layer.
    """
    keys: dict[str, list[Tensor]] = {name: [] for name in model.modules}
    values: dict[str, list[Tensor]] = {name: [] for name in model.modules}
    row_samples: list[Tensor] = []
    weights = phase.weights.to(model.device, model.compute_dtype)
    loss_total = 0.0
    for micro_batch in model.micro_batches(phase.samples, least=SINGLE_PASS_TOKENS):
        rows, row_sample = (
            micro_batch.real_rows()
            if tokens == "all"
            else (micro_batch.rows, micro_batch.row_sample)
        )
        with torch.enable_grad(), _taken(model) as taken:
            logits = model.prefix_cache.logits(micro_batch, narrow=tokens == "answer").to(
                model.compute_dtype
            )
            losses = F.cross_entropy(logits, micro_batch.labels.to(model.device), reduction="none")
            loss = losses @ weights[micro_batch.row_sample.to(model.device)]
            outputs = [taken[name][1] for name in model.modules]
            gradients = torch.autograd.grad(loss, outputs)
        loss_total += float(loss.detach())
        device_rows = rows.to(model.device)
        for name, gradient in zip(model.modules, gradients, strict=True):
            keys[name].append(_rows_of(taken[name][0], device_rows).to(model.compute_dtype))
            values[name].append(_rows_of(gradient, device_rows).to(model.compute_dtype))
        row_samples.append(row_sample)
    require_finite({"edit_loss": loss_total}, "the loss of the edits", model, phase.samples)
    # Micro-batches run by length; put the rows back into sample order, so that what follows does
    # not depend on how the samples were cut into micro-batches.
    samples = torch.cat(row_samples)
    order = torch.argsort(samples, stable=True)
    place = order.to(model.device)
    return Captured(
        {name: torch.cat(parts)[place] for name, parts in keys.items()},
        {name: torch.cat(parts)[place] for name, parts in values.items()},
        phase.group_of[samples[order]],
        loss_total,
    )


def _rows_of(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a (b, T, d) tensor; a narrow module's (1, r, d) tensor holds just them already."""
    flat = tensor.flatten(0, -2)
    return flat if len(flat) == len(rows) else flat[rows]


@contextmanager
def _taken(model: EditableModel) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Keep input and output of every target module; outputs begin the graph where none reaches."""
    taken: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            taken[name] = (args[0].detach(), output)
            return output

        return hook

    with ExitStack() as stack:
        for name in model.modules:
            handle = model.linear(name).register_forward_hook(keep(name))  # type: ignore[arg-type]
            stack.callback(handle.remove)
        yield taken
