"""Trains DAFNet's network on sequences that grow longer, and takes the loss on their prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rledit.editors.base import State
from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.ranks import shard
from rledit.reward import final_states, log_reference
from rledit.shift import LowRankShift, sum_gradients, traced
from rledit.tokenization import EditBatch, Phase, Sample

AVERAGE_RATE = 0.01
AVERAGE_RAISE = 0.3


def longer(cap: int) -> int:
    """The longest sequence that follows another one."""
    return cap + max(cap // 4, 10)


class Curriculum:
    """The longest sequence of a training step: longer once the average loss no longer improves.

    Args:
        most: Where it ends.
        patience: Steps without a better average, divided by the logarithm of the length.
        first: Where it begins.

    Attributes:
        cap: The longest sequence, in edits.
        average: Running average of the loss; not a number before the first one.
        best: The best average at this length; not a number where there is none.
        since: Steps since then.
    """

    def __init__(self, most: int, patience: int, first: int = 1) -> None:
        self._most, self._patience = most, patience
        self.cap, self.since = min(first, most), 0
        self.average = self.best = math.nan

    def observe(self, loss: float) -> None:
        """Take in the loss of a step."""
        first = math.isnan(self.average)
        self.average = loss if first else self.average + AVERAGE_RATE * (loss - self.average)
        if math.isnan(self.best) or self.average < self.best:
            self.best, self.since = self.average, 0
            return
        self.since += 1
        if self.cap < self._most and self.since >= self._patience / max(1, math.log10(self.cap)):
            self.cap = min(self._most, longer(self.cap))
            self.average += AVERAGE_RAISE
            self.best, self.since = math.nan, 0

    def state_dict(self) -> State:
        """All of it as one tensor."""
        values = [self.cap, self.since, self.average, self.best]
        return {"values": torch.tensor(values, dtype=torch.float64)}

    def load_state_dict(self, state: State) -> None:
        """Put it back."""
        cap, since, self.average, self.best = state["values"].tolist()
        self.cap, self.since = int(cap), int(since)


def edits_trained_on(steps: int, most: int, patience: int, first: int = 1) -> int:
    """Edits that training steps take in all, as expected where sequences grow as fast as they can.

    Args:
        steps: Training steps.
        most: The longest sequence that the curriculum comes to.
        patience: `Curriculum`'s.
        first: The longest sequence at first.
    """
    cap, edits = min(first, most), 0.0
    while steps > 0:
        stay = steps if cap >= most else min(steps, math.ceil(patience / max(1, math.log10(cap))))
        edits += stay * (cap + 1) / 2
        steps -= stay
        cap = min(most, longer(cap))
    return math.ceil(edits)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts that the loss of a sequence is taken of.

    Attributes:
        samples: Edit prompts and rephrases, then unrelated prompts.
        weights: (samples,) float64, the weight of each of their answer tokens.
        related: How many are no unrelated prompts.
    """

    samples: list[Sample]
    weights: Tensor
    related: int


def prompts_of(
    trajectory: Sequence[EditBatch], scored: Sequence[int], coefs: Mapping[str, float]
) -> Prompts:
    """The prompts of some edits of a sequence.

    Args:
        trajectory: The sequence; every edit has the prompts that count.
        scored: Places of the edits.
        coefs: Weight of the mean over the answer tokens of each kind: ``edit``, ``equivalent`` and
            ``unrelated``, in this order.
    """
    samples: list[Sample] = []
    weights: list[float] = []
    related = 0
    for kind, coef in coefs.items():
        phases: list[Phase] = [getattr(batch, kind) for batch in trajectory]
        own = [sample for phase in phases for sample in phase.samples] if coef else []
        chosen = [own[i] for i in scored] if own else []
        tokens = sum(len(sample.answer_ids) for sample in chosen)
        samples += chosen
        weights += [coef / tokens for _ in chosen]
        related += len(chosen) if kind != "unrelated" else 0
    return Prompts(samples, torch.tensor(weights, dtype=torch.float64), related)


def learn(
    model: EditableModel, shifts: Mapping[str, LowRankShift], prompts: Prompts
) -> dict[str, float]:
    """Edit the unedited model by shifts, and carry the gradient of the loss into their graph.

    The loss is the negative log-likelihood of answers to related prompts and the divergence from
    the unedited model's answers to unrelated ones. The model is the unedited one again afterwards.
    """
    samples, related = prompts.samples, prompts.related
    own = shard(samples, model.ranks)
    unrelated = [i for i in own if i >= related]
    states = final_states(model, samples, unrelated)
    references = dict(zip(unrelated, states, strict=True))
    leaves = {name: shift.detached(requires_grad=True) for name, shift in shifts.items()}
    try:
        model.weights.add_all(shifts)
        with torch.enable_grad(), traced(model, leaves):
            found = _losses(model, prompts, own, references)
    finally:
        model.weights.restore()
    sum_gradients(model.ranks, leaves)
    losses = torch.stack([found[:related].sum(), found[related:].sum()])
    model.ranks.all_reduce_(losses)
    _carry_on(shifts, leaves)
    return {
        "loss": float(losses.sum()),
        "equivalence": float(losses[0]),
        "divergence": float(losses[1]),
        "norm": math.sqrt(sum(float(s.squared_norm().detach()) for s in shifts.values())),
    }


def _losses(
    model: EditableModel, prompts: Prompts, own: list[int], references: Mapping[int, Tensor]
) -> Tensor:
    """(samples,) weighted losses of this rank's prompts; gradients collect in the leaves."""
    from rledit.losses import row_losses

    found = torch.zeros(len(prompts.samples), dtype=torch.float64)
    compared = torch.arange(len(found)) >= prompts.related
    for micro_batch in model.own_micro_batches(prompts.samples, own):
        rows = micro_batch.row_sample
        logits = model.prefix_cache.logits(micro_batch).to(model.compute_dtype)
        reference = log_reference(model, [references.get(i) for i in micro_batch.index.tolist()])
        labels = micro_batch.labels.to(logits.device)
        losses = row_losses(logits, labels, compared[rows], reference)
        losses.backward(prompts.weights[rows].to(losses))
        found.index_add_(0, rows, losses.detach().double().cpu() * prompts.weights[rows])
    return found


def _carry_on(shifts: Mapping[str, LowRankShift], leaves: Mapping[str, LowRankShift]) -> None:
    """Carry the gradients of the leaves on into the graph of the shifts."""
    outputs: list[Tensor] = []
    gradients: list[Tensor] = []
    for name, shift in shifts.items():
        pairs = ((shift.left, leaves[name].left), (shift.right, leaves[name].right))
        for factor, leaf in pairs:
            if factor is not None and leaf is not None and factor.requires_grad:
                outputs.append(factor)
                gradients.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
    torch.autograd.backward(outputs, gradients)
