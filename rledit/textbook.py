"""RLEdit written out densely, equation by equation: the oracle of the tests and the opponent timed.

Nothing here is shared with the fast path but the records of a batch. Every loss group is one padded
forward of the whole model with all its logits, weights are edited in place and un-edited around
each forward, gradients are dense weight gradients, and each module solves its d_in x d_in normal
equation. That is how the authors' release works (arXiv 2502.05759, sections 3 and 4); the reward is
the article's. In float64 it judges the fast path, in float32 the fast path is timed against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rledit.tokenization import IGNORED, EditBatch, Phase, Sample

Shape = tuple[int, int]
Parameters = dict[Shape, dict[str, Tensor]]
STD_EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True, kw_only=True)
class TextbookConfig:
    """Settings of the dense implementation; the defaults are the article's.

    Attributes:
        rank: Rank r of the hypernetwork's blocks.
        n_blocks: Number of blocks.
        initial_step: η_0, the step size every module starts from.
        loc_coef: λ_loc, the weight of the locality KL.
        reg_coef: η_reg, the weight of ‖S_t‖².
        decay: μ, the weight of an earlier batch is μ^j.
        depth: k, batches in the reward, the current one counted.
        kl_reference: Model whose distribution is to be kept: W_0 or W_{t-1}.
        max_grad_norm: Joint clip of the gradient before Adam (None: no clip).
        meta_lr: Adam's learning rate.
        step_form: ``log`` learns s with η = η_0 exp(s), ``raw`` learns η itself.
        rule: ``normal_equation`` (MALMEN, RLEdit) or ``outer_product`` (MEND).
        tokens: Positions captured: those that predict the ``answer``, or ``all`` real tokens.
        gradient: ``explicit`` solves for the gradient by hand, ``autograd`` differentiates.
    """

    rank: int
    n_blocks: int = 4
    initial_step: float = 1e-6
    loc_coef: float = 0.6
    reg_coef: float = 1e-4
    decay: float = 0.95
    depth: int = 10
    kl_reference: Literal["pretrained", "previous"] = "pretrained"
    max_grad_norm: float | None = 1.0
    meta_lr: float = 1e-5
    step_form: Literal["log", "raw"] = "log"
    rule: Literal["normal_equation", "outer_product"] = "normal_equation"
    tokens: Literal["answer", "all"] = "answer"
    gradient: Literal["explicit", "autograd"] = "explicit"


@dataclass
class TextbookMoments:
    """Mean and deviation per feature of all rows seen, by the law of total variance.

    Each batch is summarised by its own two-pass statistics; pooling them is exact:
    mean = Σ n_b mean_b / n, Σ (x - mean)² = Σ ss_b + Σ n_b (mean_b - mean)².
    """

    counts: list[int] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor) -> None:
        """Take in the rows (n, d) of one batch, all modules of a shape together."""
        mean = rows.mean(0)
        self.counts.append(len(rows))
        self.means.append(mean)
        self.squares.append((rows - mean).square().sum(0))

    def normalise(self, rows: Tensor) -> Tensor:
        """(rows - mean) / (std + ε) with the sample deviation, rows of shape (n, d)."""
        counts = torch.tensor(self.counts, dtype=rows.dtype, device=rows.device)[:, None]
        means = torch.stack(self.means)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        square = torch.stack(self.squares).sum(0) + (counts * (means - mean).square()).sum(0)
        std = (square / (total - 1).clamp(min=1)).sqrt()
        return (rows - mean) / (std + STD_EPSILON)


def textbook_parameters(
    shapes: Mapping[Shape, int],
    config: TextbookConfig,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Parameters:
    """Hypernetwork parameters at their start, where the network is the identity.

    Args:
        shapes: Number of edited modules of each (d_in, d_out).
        config: Gives rank, blocks and initial step.
        generator: CPU source of A's normal numbers.
        dtype: Type of the parameters, and of all of the editor's own arithmetic.
        device: Where they are made.
    """
    parameters: Parameters = {}
    step = 0.0 if config.step_form == "log" else config.initial_step
    for (d_in, d_out), count in shapes.items():
        d = d_in + d_out
        tensors = {
            "step_parameter": torch.full((count,), step),
            "log_ridge": torch.zeros(count),
        }
        for i in range(config.n_blocks):
            tensors[f"blocks.{i}.A"] = torch.randn(d, config.rank, generator=generator)
            tensors[f"blocks.{i}.B"] = torch.zeros(config.rank, d)
            tensors[f"blocks.{i}.bias"] = torch.zeros(d)
            tensors[f"blocks.{i}.scale"] = torch.ones(count, d)
            tensors[f"blocks.{i}.shift"] = torch.zeros(count, d)
        parameters[d_in, d_out] = {k: v.to(device, dtype) for k, v in tensors.items()}
    return parameters


def textbook_network(z: Tensor, parameters: Mapping[str, Tensor], index: int) -> Tensor:
    """h ← h + scale_j ⊙ max(h A B + b, 0) + shift_j, block after block, for module `index`.

    The slope of max(·, 0) at 0 is taken as 1: B starts at zero and would never move otherwise.
    """
    h, i = z, 0
    while f"blocks.{i}.A" in parameters:
        name = f"blocks.{i}."
        inner = h @ parameters[name + "A"] @ parameters[name + "B"] + parameters[name + "bias"]
        scale, shift = parameters[name + "scale"][index], parameters[name + "shift"][index]
        h = h + scale * inner.clamp(min=0) + shift
        i += 1
    return h


def textbook_shift(keys: Tensor, differences: Tensor, ridge: Tensor | float) -> Tensor:
    """S = (KᵀK + λI)⁻¹ KᵀD, (d_in, d_out), by a dense d_in x d_in solve."""
    return torch.linalg.solve(_normal_matrix(keys, ridge), keys.T @ differences)


def textbook_shift_gradient(
    keys: Tensor, shift: Tensor, ridge: Tensor | float, shift_gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of D (n, d_out) and λ, given dS: G = (KᵀK + λI)⁻¹ dS, dD = KG, dλ = -tr GᵀS."""
    solved = torch.linalg.solve(_normal_matrix(keys, ridge), shift_gradient)
    return keys @ solved, -(solved * shift).sum()


def textbook_capture(
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
    for inputs, labels in _groups(phase, model):
        chosen = labels != IGNORED if tokens == "answer" else inputs["attention_mask"].bool()
        seen: dict[str, Tensor] = {}
        hooks = [
            model.get_submodule(name).register_forward_hook(_recorder(name, chosen, rows, seen))
            for name in modules
        ]
        loss = _cross_entropy(model(**inputs, use_cache=False).logits, labels)
        for hook in hooks:
            hook.remove()
        loss.backward()
        for name in modules:
            rows[name][1].append(_gradient(seen[name])[chosen])
            model.get_submodule(name).weight.grad = None
        total += loss.item()
    return {
        name: (torch.cat(keys), torch.cat(grads)) for name, (keys, grads) in rows.items()
    }, total


@dataclass(frozen=True, kw_only=True)
class TextbookAction:
    """What one batch does to one module: its rows, its dense shift S (d_in, d_out) and ΔW = Sᵀ."""

    shape: Shape
    index: int
    keys: Tensor
    normalised: Tensor
    shift: Tensor
    delta: Tensor


@dataclass(frozen=True, kw_only=True)
class TextbookStep:
    """One batch of a trajectory: dense shifts by module, and the terms of its loss."""

    shifts: dict[str, Tensor]
    losses: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TextbookTrajectory:
    """A trajectory's hypernetwork gradients (before the clip) and its steps."""

    gradients: Parameters
    steps: tuple[TextbookStep, ...]


class TextbookRLEdit:
    """RLEdit, dense. The model is edited in place and belongs to this object.

    Args:
        model: A Hugging Face causal language model.
        modules: Full names of the edited ``nn.Linear`` modules; their order numbers them.
        config: The settings.
        parameters: Hypernetwork parameters by (d_in, d_out); None: the identity start.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Sequence[str],
        config: TextbookConfig,
        parameters: Mapping[Shape, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.model, self.modules, self.config = model.requires_grad_(False).eval(), modules, config
        self.weights: dict[str, Tensor] = {}
        self.members: dict[Shape, list[str]] = {}
        for name in modules:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            self.weights[name] = weight.requires_grad_(True)
            self.members.setdefault((weight.shape[1], weight.shape[0]), []).append(name)
        self.original = {name: w.detach().clone() for name, w in self.weights.items()}
        self.moments = {shape: TextbookMoments() for shape in self.members}
        if parameters is None:
            counts = {shape: len(names) for shape, names in self.members.items()}
            parameters = textbook_parameters(counts, config)
        device = next(iter(self.weights.values())).device
        self.parameters: Parameters = {
            shape: {
                key: tensor.detach().clone().to(device).requires_grad_(True)
                for key, tensor in parameters[shape].items()
            }
            for shape in self.members
        }
        self.optimiser = torch.optim.Adam(self._leaves(), lr=config.meta_lr)

    def train_step(self, batches: Sequence[EditBatch]) -> TextbookTrajectory:
        """One trajectory, one clip, one optimiser step; the model is W_0 again afterwards."""
        trajectory = self.trajectory(batches)
        self._optimise()
        return trajectory

    def train_batch(self, batch: EditBatch) -> TextbookTrajectory:
        """MALMEN's and MEND's training: one optimiser step per batch, on the unedited model."""
        return self.train_step([batch])

    def trajectory(self, batches: Sequence[EditBatch]) -> TextbookTrajectory:
        """Edit with batch after batch and accumulate the hypernetwork's gradient of Σ_t L_t."""
        self.optimiser.zero_grad(set_to_none=True)
        steps = []
        for t in range(len(batches)):
            window = [batches[t - j] for j in range(min(self.config.depth, t + 1))]
            steps.append(self.step(window))
        self.reset()
        gradients = {
            shape: {k: _gradient(p).clone() for k, p in tensors.items()}
            for shape, tensors in self.parameters.items()
        }
        return TextbookTrajectory(gradients=gradients, steps=tuple(steps))

    def step(self, window: Sequence[EditBatch]) -> TextbookStep:
        """One batch of a trajectory: edit with it and add the gradient of its L_t.

        Args:
            window: The batches that L_t scores, newest first; the newest is written into the model.
        """
        actions = self.predict(window[0])
        losses = self._reward(window, actions)
        for name, action in actions.items():
            self._differentiate(action, _gradient(self.weights[name]).T)
            self.weights[name].grad = None
        self._add(actions)
        shifts = {name: action.shift for name, action in actions.items()}
        return TextbookStep(shifts=shifts, losses=losses)

    def edit(self, batch: EditBatch) -> dict[str, Tensor]:
        """Write one batch into the model; returns the dense shifts (d_in, d_out) by module."""
        actions = self.predict(batch)
        self._add(actions)
        return {name: action.shift for name, action in actions.items()}

    def reset(self) -> None:
        """Put W_0 back; moments and hypernetwork stay."""
        self._write(self.original)

    def predict(self, batch: EditBatch) -> dict[str, TextbookAction]:
        """Capture, update the moments with all modules of a shape, then predict each module."""
        captured, _ = textbook_capture(self.model, batch.edit, self.modules, self.config.tokens)
        actions: dict[str, TextbookAction] = {}
        for shape, names in self.members.items():
            dtype = self.parameters[shape]["log_ridge"].dtype
            rows = {name: torch.cat(captured[name], 1).to(dtype) for name in names}
            self.moments[shape].add(torch.cat(list(rows.values())))
            for index, name in enumerate(names):
                keys, z = rows[name][:, : shape[0]], self.moments[shape].normalise(rows[name])
                with torch.no_grad():
                    shift = self._shift(shape, index, keys, z)
                actions[name] = TextbookAction(
                    shape=shape,
                    index=index,
                    keys=keys,
                    normalised=z,
                    shift=shift,
                    delta=shift.T.to(self.weights[name].dtype).contiguous(),
                )
        return {name: actions[name] for name in self.modules}

    def _shift(self, shape: Shape, index: int, keys: Tensor, z: Tensor) -> Tensor:
        left, right, step = self._network(shape, index, z)
        if self.config.rule == "outer_product":
            return -step * left.T @ right
        return textbook_shift(
            keys, _differences(keys, left, right, step), self._ridge(shape, index)
        )

    def _network(self, shape: Shape, index: int, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K̃ (n, d_in), Ṽ (n, d_out) and η_j."""
        tensors = self.parameters[shape]
        h = textbook_network(z, tensors, index)
        step = tensors["step_parameter"].reshape(-1)[index]
        if self.config.step_form == "log":
            step = self.config.initial_step * step.exp()
        return h[:, : shape[0]], h[:, shape[0] :], step

    def _ridge(self, shape: Shape, index: int) -> Tensor:
        return self.parameters[shape]["log_ridge"].reshape(-1)[index].exp()

    def _differentiate(self, action: TextbookAction, weight_gradient: Tensor) -> None:
        """Add to the hypernetwork's gradient, given dL/dS = (dL/dW)ᵀ of the model's passes."""
        config = self.config
        outer = weight_gradient.to(action.shift.dtype)
        if config.gradient == "autograd" or config.rule == "outer_product":
            shift = self._shift(action.shape, action.index, action.keys, action.normalised)
            ((shift * outer).sum() + config.reg_coef * shift.square().sum()).backward()
            return
        outer = outer + 2 * config.reg_coef * action.shift
        ridge = self._ridge(action.shape, action.index)
        with torch.no_grad():
            d_differences, d_ridge = textbook_shift_gradient(
                action.keys, action.shift, ridge, outer
            )
        left, right, step = self._network(action.shape, action.index, action.normalised)
        differences = _differences(action.keys, left, right, step)
        torch.autograd.backward([differences, ridge], [d_differences, d_ridge])

    def _reward(
        self, window: Sequence[EditBatch], actions: Mapping[str, TextbookAction]
    ) -> dict[str, float]:
        """Back-propagate the decayed losses of the window (newest first) into the weights."""
        losses = {"equivalent": 0.0, "unrelated": 0.0}
        previous = {name: w.detach().clone() for name, w in self.weights.items()}
        for j, batch in enumerate(window):
            weight = self.config.decay**j
            for inputs, labels in _groups(batch.equivalent, self.model):
                with self._edited(actions, previous):
                    loss = _cross_entropy(self._forward(inputs), labels)
                    (weight * loss).backward()
                losses["equivalent"] += weight * loss.item()
            for inputs, labels in _groups(batch.unrelated, self.model):
                reference = self._reference(inputs)
                with self._edited(actions, previous):
                    loss = _divergence(reference, self._forward(inputs), labels)
                    (weight * self.config.loc_coef * loss).backward()
                losses["unrelated"] += weight * loss.item()
        losses["norm"] = sum(a.shift.square().sum().item() for a in actions.values())
        losses["total"] = (
            losses["equivalent"]
            + self.config.loc_coef * losses["unrelated"]
            + self.config.reg_coef * losses["norm"]
        )
        return losses

    @torch.no_grad()
    def _reference(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits (samples, T, vocabulary) of the model whose behaviour is to be kept."""
        if self.config.kl_reference == "previous":
            return self._forward(inputs)
        current = {name: weight.data for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            weight.data = self.original[name]
        logits = self._forward(inputs)
        for name, weight in self.weights.items():
            weight.data = current[name]
        return logits

    def _forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**inputs, use_cache=False).logits
        return logits

    @contextmanager
    def _edited(
        self, actions: Mapping[str, TextbookAction], previous: Mapping[str, Tensor]
    ) -> Iterator[None]:
        """W_t = W_{t-1} + Sᵀ in place, un-edited on the way out."""
        self._add(actions)
        try:
            yield
        finally:
            self._write(previous)

    @torch.no_grad()
    def _add(self, actions: Mapping[str, TextbookAction]) -> None:
        for name, action in actions.items():
            self.weights[name].add_(action.delta)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.weights[name].copy_(value)

    def _leaves(self) -> list[Tensor]:
        return [p for tensors in self.parameters.values() for p in tensors.values()]

    def _optimise(self) -> None:
        """Clip the joint norm of all networks to `max_grad_norm`, then one Adam step."""
        leaves = [p for p in self._leaves() if p.grad is not None]
        limit = self.config.max_grad_norm
        if limit is not None:
            norm = math.sqrt(sum(_gradient(p).square().sum().item() for p in leaves))
            for p in leaves:
                _gradient(p).mul_(min(1.0, limit / (norm + 1e-6)))
        self.optimiser.step()


def _normal_matrix(keys: Tensor, ridge: Tensor | float) -> Tensor:
    return keys.T @ keys + ridge * torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)


def _differences(keys: Tensor, left: Tensor, right: Tensor, step: Tensor) -> Tensor:
    """D = -η rowsum(K ⊙ K̃) ⊙ Ṽ, (n, d_out), with the raw keys."""
    return -step * (keys * left).sum(1, keepdim=True) * right


def _groups(phase: Phase, model: Any) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The loss groups of a phase, each right-padded to its own longest sample."""
    for start in range(0, len(phase.samples), phase.group_size):
        group: Sequence[Sample] = phase.samples[start : start + phase.group_size]
        width = max(len(sample.input_ids) for sample in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for row, sample in enumerate(group):
            length = len(sample.input_ids)
            ids[row, :length], labels[row, :length] = sample.input_ids, sample.labels
            mask[row, :length] = 1
        device = model.device
        yield {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, labels.to(device)


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


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the answer tokens of a group."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def _divergence(reference: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """KL(p_ref ‖ p), mean over the answer tokens of a group."""
    ours, theirs = logits.log_softmax(-1), reference.log_softmax(-1)
    rows = (theirs.exp() * (theirs - ours)).sum(-1)
    return rows[labels != IGNORED].mean()


def _gradient(tensor: Tensor) -> Tensor:
    return tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
