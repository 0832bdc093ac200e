"""Keys and value gradients of the target modules, taken by hooks while the edit loss runs.

For each target module: K (n x d_in), its inputs, and V (n x d_out), the gradient of the edit loss
with respect to its output, at the positions that predict answer tokens (or at all positions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from rledit.finite import require_finite
from rledit.lazy_torch import F, Tensor, nn, torch
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.ranks import gathered, shard
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


def capture(
    model: EditableModel, phase: Phase, tokens: Tokens = "answer", token_weight: float | None = None
) -> Captured:
    """Run the edit loss of a phase on the current model and take K and V.

    Several ranks share the prompts out; every rank gets all rows, in the same bits.

    Args:
        model: The model; its weights stay frozen and get no gradient.
        phase: The edit prompts.
        tokens: Take rows at the positions that predict answer tokens, or at all real positions.
        token_weight: Weight of each answer token in the loss; None: as the phase's groups have it.

    Returns:
        K and V of every edited module, rows ordered by sample and position.

    Raises:
        NonFiniteError: The loss is not finite; names the layer.
    """
    keys: dict[str, list[Tensor]] = {name: [] for name in model.modules}
    values: dict[str, list[Tensor]] = {name: [] for name in model.modules}
    row_samples: list[Tensor] = []
    per_token = phase.weights
    if token_weight is not None:
        per_token = torch.full_like(per_token, token_weight)
    weights = per_token.to(model.device, model.compute_dtype)
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    own = shard(phase.samples, model.ranks)
    for micro_batch in model.own_micro_batches(phase.samples, own, SINGLE_PASS_TOKENS):
        rows, row_sample = (
            micro_batch.real_rows()
            if tokens == "all"
            else (micro_batch.rows, micro_batch.row_sample)
        )
        with torch.enable_grad(), taken({n: model.linear(n) for n in model.modules}) as found:
            logits = model.prefix_cache.logits(micro_batch, narrow=tokens == "answer").to(
                model.compute_dtype
            )
            losses = F.cross_entropy(logits, micro_batch.labels.to(model.device), reduction="none")
            loss = losses @ weights[micro_batch.row_sample.to(model.device)]
            outputs = [found[name][1] for name in model.modules]
            gradients = torch.autograd.grad(loss, outputs)
        total += loss.detach()
        device_rows = rows.to(model.device)
        for name, gradient in zip(model.modules, gradients, strict=True):
            keys[name].append(_rows_of(found[name][0], device_rows).to(model.compute_dtype))
            values[name].append(_rows_of(gradient, device_rows).to(model.compute_dtype))
        row_samples.append(row_sample)
    total = total.cpu()  # a GPU is waited for once
    model.ranks.all_reduce_(total)
    require_finite({"edit_loss": float(total)}, "the loss of the edits", model, phase.samples)
    # Micro-batches run by length; put the rows back into sample order, so that what follows does
    # not depend on how the samples were cut into micro-batches, or dealt over ranks.
    counts = [len(s) if tokens == "all" else len(s.answer_ids) for s in phase.samples]
    places = _places(counts, torch.cat(row_samples) if row_samples else torch.zeros(0))
    n = sum(counts)
    return Captured(
        {name: _whole(model, name, 0, parts, places, n) for name, parts in keys.items()},
        {name: _whole(model, name, 1, parts, places, n) for name, parts in values.items()},
        phase.group_of.repeat_interleave(torch.tensor(counts)),
        float(total),
    )


def _places(counts: Sequence[int], row_samples: Tensor) -> Tensor:
    """(own rows,) int64, where rows stand among those of all samples, in sample order.

    Args:
        counts: Rows of each sample.
        row_samples: The sample of each row; those of one sample follow one another.
    """
    starts = torch.tensor(counts).cumsum(0) - torch.tensor(counts)
    _, own = row_samples.unique_consecutive(return_counts=True)
    within = [torch.arange(int(count)) for count in own]
    return starts[row_samples.long()] + torch.cat([torch.zeros(0), *within]).long()


def _whole(
    model: EditableModel, name: str, side: int, parts: list[Tensor], places: Tensor, n: int
) -> Tensor:
    """(n, d) rows of all ranks at the inputs (side 0) or outputs (1) of a module."""
    nothing = torch.zeros(
        0, model.shape(name)[side], dtype=model.compute_dtype, device=model.device
    )
    own = torch.cat([nothing, *parts])
    return gathered(model.ranks, own, places.to(model.device), n)


def _rows_of(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a (b, T, d) tensor; a narrow module's (1, r, d) tensor holds just them already."""
    flat = tensor.flatten(0, -2)
    return flat if len(flat) == len(rows) else flat[rows]


@contextmanager
def taken(linears: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Keep input and output of linear layers; outputs begin the graph where none reaches."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            found[name] = (args[0].detach(), output)
            return output

        return hook

    with ExitStack() as stack:
        for name, linear in linears.items():
            handle = linear.register_forward_hook(keep(name))  # type: ignore[arg-type]
            stack.callback(handle.remove)
        yield found
