"""Spread of value vectors over several layers, each of which takes a share of the residual.

MEMIT (arXiv 2210.07229, algorithm 1): from the lowest edited layer to the highest, the residual
R_l = (z − h_L) / (layers left) becomes an update of layer l, where h_L is what the highest layer
shows after the updates of the layers below. Where a family normalises the MLP's output, which the
article's families do not, the residual is first taken back through that norm (`stream_gain`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rledit.families import layer_index
from rledit.lazy_torch import Tensor, torch
from rledit.locate.keys import block_values, stream_gain, subject_keys
from rledit.locate.requests import Request
from rledit.model import EditableModel
from rledit.shift import LowRankShift


@dataclass(frozen=True, eq=False)
class LayerUpdate:
    """The update of one layer.

    Attributes:
        module: The target module.
        keys: (edits, d_in), averaged keys before the update.
        shown: (edits, hidden), what the highest layer showed before it.
        residual: (edits, hidden), the share of what was missing.
        shift: The update.
        condition: Condition of the system it came from.
        jitter: Jitter that system needed.
        realised: Cosine between the change of the weights and the update.
    """

    module: str
    keys: Tensor
    shown: Tensor
    residual: Tensor
    shift: LowRankShift
    condition: float
    jitter: float
    realised: float


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method's system answers for one layer.

    Attributes:
        left: (edits, d_in): the update is Σ residual ⊗ left.
        condition: Condition of the system.
        jitter: Jitter it needed.
        pull: (d_in, d_out) float64, a part of the update that no residual asks for, transposed;
            None where there is none.
    """

    left: Tensor
    condition: float
    jitter: float
    pull: Tensor | None = None

    def shift(self, right: Tensor) -> LowRankShift:
        """The update, from the residual (edits, d_out) at the linear's output."""
        if self.pull is None:
            return LowRankShift(self.left.to(right.dtype), right)
        whole = torch.addmm(self.pull, self.left.double().T, right.double())
        return LowRankShift(None, whole.to(right.dtype))


Solve = Callable[[str, Tensor], Answer]
"""Left factor of the update of a module, from its keys (edits, d_in)."""


@torch.no_grad()
def spread(
    model: EditableModel,
    requests: Sequence[Request],
    targets: Tensor,
    weights: Tensor,
    solve: Solve,
) -> list[LayerUpdate]:
    """Write the targets into the target modules, lowest layer first.

    Args:
        model: The model; its weights change.
        requests: The edits.
        targets: z (edits, hidden), what the highest edited layer shall show.
        weights: (contexts,), weights of an averaged key.
        solve: The method's system.

    Returns:
        One update per target module, in the order of writing.
    """
    modules = in_order(model)
    last = layer_index(model.family, modules[-1])
    updates: list[LayerUpdate] = []
    for i, name in enumerate(modules):
        keys = subject_keys(model, requests, [name], weights)[name]
        shown = block_values(model, requests, last)
        residual = (targets - shown) / (len(modules) - i)
        answer = solve(name, keys)
        gain = stream_gain(model, requests, name)
        shift = answer.shift(residual if gain is None else residual * gain)
        realised = model.weights.add(name, shift)
        updates.append(
            LayerUpdate(
                name, keys, shown, residual, shift, answer.condition, answer.jitter, realised
            )
        )
    return updates


def in_order(model: EditableModel) -> list[str]:
    """The target modules, lowest layer first.

    Raises:
        ValueError: Two of them lie in one layer, or one does not write into the residual stream.
    """
    by_layer: dict[int, str] = {}
    path = model.family.target_modules["down"]
    for name in model.modules:
        layer = layer_index(model.family, name)
        if not name.endswith(f".{path}"):
            raise ValueError(
                f"edited module {name!r}: locate-then-edit methods edit {path!r}, the linear that "
                f"writes into the residual stream; use down:{layer}"
            )
        by_layer[layer] = name
    return [by_layer[layer] for layer in sorted(by_layer)]
