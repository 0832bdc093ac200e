"""Gradient descent on target modules: the objectives and loop that fine-tuning editors share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rledit.capture import taken
from rledit.finite import require_finite
from rledit.lazy_torch import F, Tensor, nn, torch
from rledit.micro_batches import MicroBatch
from rledit.model import EditableModel
from rledit.ranks import shard
from rledit.tokenization import IGNORED, Sample


class Objective(Protocol):
    """The loss of one mini-batch."""

    @property
    def samples(self) -> Sequence[Sample]:
        """What to run."""
        ...

    def loss(self, micro_batch: MicroBatch, logits: Tensor) -> Tensor:
        """A micro-batch's part of the mini-batch's loss; the parts of all micro-batches add up to
        it."""
        ...


class TargetLikelihood:
    """Mean negative log-likelihood of the target tokens, each where it is predicted."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._n_tokens = sum(len(s.answer_ids) for s in samples)

    def loss(self, micro_batch: MicroBatch, logits: Tensor) -> Tensor:
        """Sum over the micro-batch's answer tokens, divided by those of the mini-batch."""
        labels = micro_batch.labels.to(logits.device)
        return F.cross_entropy(logits, labels, reduction="sum") / self._n_tokens


class PromptEndLikelihood:
    """All target tokens scored at the prompt's last position, as a common release does.

    Args:
        prompts: Token ids of each prompt, BOS included.
        targets: (n, length) ids of the targets, as that release pads them.
        counted: (n, length) bool, the ids that count.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], targets: Tensor, counted: Tensor) -> None:
        self.samples = [_prompt(ids) for ids in prompts]
        self.targets = targets
        self.counted = counted

    def loss(self, micro_batch: MicroBatch, logits: Tensor) -> Tensor:
        """Mean over samples of the mean over the ids that count."""
        log_p = F.log_softmax(logits, dim=-1)
        rows = micro_batch.row_sample
        picked = log_p.gather(1, self.targets[rows].to(logits.device))
        counted = self.counted[rows].to(picked)
        return -((picked * counted).sum(1) / counted.sum(1)).sum() / len(self.samples)


def _prompt(ids: Sequence[int]) -> Sample:
    labels = torch.full((len(ids),), IGNORED)
    labels[-1] = 0
    return Sample(torch.as_tensor(ids, dtype=torch.long), labels)


class Tunable(Protocol):
    """Matrices of linear layers that can be read, written and differentiated, such as
    `EditedWeights`.

    A gradient is made of the linear's keys (its inputs, (n, d_in)) and value gradients (those with
    respect to its outputs, (n, d_out)): no rank of a sharded model holds a whole matrix to
    differentiate.
    """

    names: tuple[str, ...]

    def read(self, name: str) -> Tensor:
        """The current value, at full precision."""
        ...

    def set(self, name: str, value: Tensor) -> None:
        """Replace the value."""
        ...

    def linear(self, name: str) -> nn.Module:
        """The linear it is of."""
        ...

    def gradient(self, name: str, keys: Tensor, values: Tensor) -> Tensor:
        """Its gradient, in the layout of `read` and `set`, from keys and value gradients."""
        ...


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How to descend.

    Attributes:
        lr: Adam's learning rate.
        weight_decay: Adam's L2 penalty.
        norm_constraint: ε; no entry may move further than this from where it started.
        stop_loss: A mini-batch below this loss makes no step, and a pass whose mean is below it is
            the last one.
    """

    lr: float
    weight_decay: float = 0.0
    norm_constraint: float | None = None
    stop_loss: float = 0.0


class StepRule(Protocol):
    """Holds gradients, or the steps that Adam makes of them, to what may change."""

    def gradient(self, name: str, gradient: Tensor) -> Tensor:
        """The part of a matrix's gradient that Adam sees."""
        ...

    def step(self, name: str, step: Tensor) -> Tensor:
        """The part of Adam's step that is made."""
        ...

    def stepped(self) -> None:
        """Told after every step, when the weights have changed."""
        ...


AdamState = dict[str, dict[str, Tensor]]
"""Matrix → what Adam keeps of it, by the names that torch has for that."""


def descend(
    model: EditableModel,
    weights: Tunable,
    passes: Iterable[Sequence[Objective]],
    config: Descent,
    rule: StepRule | None = None,
    adam: AdamState | None = None,
) -> list[float]:
    """Minimise objectives by Adam, one step per mini-batch, in the precision of losses.

    Several ranks share the samples of a mini-batch out, and take the same step.

    Args:
        model: The model.
        weights: What to change.
        passes: The mini-batches of each pass.
        config: How to descend.
        rule: What steps are held to; None: nothing.
        adam: What Adam has kept of an earlier descent, to go on with; this one's is put there. Not
            changed in place otherwise. None: begin anew.

    Returns:
        The loss of every mini-batch before its step.

    Raises:
        NonFiniteError: A loss is not finite; names the layer.
    """
    # A matrix that nothing has been added to yet is read as the model has it, in bfloat16 perhaps.
    start = {n: weights.read(n).to(model.compute_dtype, copy=True) for n in weights.names}
    masters = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimiser = torch.optim.Adam(masters.values(), lr=config.lr, weight_decay=config.weight_decay)
    for name, kept in (adam or {}).items():
        optimiser.state[masters[name]].update({k: v.clone() for k, v in kept.items()})
    losses: list[float] = []
    for objectives in passes:
        for objective in objectives:
            loss, gradients = _gradients(model, weights, objective)
            losses.append(loss)
            if loss < config.stop_loss:
                continue
            for name, master in masters.items():
                gradient = gradients[name].to(master.dtype)
                master.grad = gradient if rule is None else rule.gradient(name, gradient)
            _step(optimiser, masters, rule)
            for name, master in masters.items():
                if config.norm_constraint is not None:
                    low, high = start[name] - config.norm_constraint, start[name]
                    master.data.clamp_(low, high + config.norm_constraint)
                weights.set(name, master.detach())
            if rule is not None:
                rule.stepped()
        latest = losses[len(losses) - len(objectives) :]
        if sum(latest) / len(latest) < config.stop_loss:
            break
    if adam is not None:
        adam.update({name: dict(optimiser.state[master]) for name, master in masters.items()})
    return losses


def _step(
    optimiser: torch.optim.Optimizer, masters: Mapping[str, Tensor], rule: StepRule | None
) -> None:
    """One step of the optimiser, held to a rule."""
    if rule is None:
        optimiser.step()
        return
    before = {name: master.detach().clone() for name, master in masters.items()}
    optimiser.step()
    for name, master in masters.items():
        step = master.detach().sub_(before[name])
        master.data = before[name].add_(rule.step(name, step))


def _gradients(
    model: EditableModel, weights: Tunable, objective: Objective
) -> tuple[float, dict[str, Tensor]]:
    """Loss of a mini-batch, and its gradient for every matrix, on every rank."""
    total = torch.zeros((), dtype=torch.float64)
    sums = {n: torch.zeros_like(weights.read(n), dtype=model.compute_dtype) for n in weights.names}
    linears = {name: weights.linear(name) for name in weights.names}
    own = shard(objective.samples, model.ranks)
    for micro_batch in model.own_micro_batches(objective.samples, own):
        with torch.enable_grad(), taken(linears) as found:
            logits = model.prefix_cache.logits(micro_batch).to(model.compute_dtype)
            loss = objective.loss(micro_batch, logits)
            gradients = torch.autograd.grad(loss, [output for _, output in found.values()])
        total += float(loss.detach())
        for name, gradient in zip(found, gradients, strict=True):
            keys = found[name][0].flatten(0, -2)
            sums[name] += weights.gradient(name, keys, gradient.flatten(0, -2))
    for whole in (total, *sums.values()):
        model.ranks.all_reduce_(whole)
    require_finite({"edit_loss": float(total)}, "the loss of fine-tuning", model, objective.samples)
    return float(total), sums
