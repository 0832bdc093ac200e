"""RLEdit itself: capture, prediction, reward and the hypernetwork's gradient, all dense."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rledit.tokenization import EditBatch
from tests.reference.capture import reference_capture
from tests.reference.equation import reference_shift, reference_shift_gradient
from tests.reference.moments import ReferenceMoments
from tests.reference.network import (
    Parameters,
    Shape,
    differences,
    reference_network,
    reference_parameters,
)
from tests.reference.passes import gradient_of
from tests.reference.reward import reference_reward
from tests.reference.settings import ReferenceConfig
from tests.reference.weights import ReferenceWeights


@dataclass(frozen=True, kw_only=True)
class ReferenceAction:
    """What one batch does to one module: its rows, its dense shift S (d_in, d_out) and ΔW = Sᵀ."""

    shape: Shape
    index: int
    keys: Tensor
    normalised: Tensor
    shift: Tensor
    delta: Tensor


@dataclass(frozen=True, kw_only=True)
class ReferenceStep:
    """One batch of a trajectory: dense shifts by module, and the terms of its loss."""

    shifts: dict[str, Tensor]
    losses: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ReferenceTrajectory:
    """A trajectory's hypernetwork gradients (before the clip) and its steps."""

    gradients: Parameters
    steps: tuple[ReferenceStep, ...]


class ReferenceRLEdit:
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
        config: ReferenceConfig,
        parameters: Mapping[Shape, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.model, self.modules, self.config = model.eval(), modules, config
        self._edited = ReferenceWeights(model, modules)
        self.members: dict[Shape, list[str]] = {}
        for name, weight in self.weights.items():
            self.members.setdefault((weight.shape[1], weight.shape[0]), []).append(name)
        self.moments = {shape: ReferenceMoments() for shape in self.members}
        if parameters is None:
            counts = {shape: len(names) for shape, names in self.members.items()}
            parameters = reference_parameters(counts, config)
        device = next(iter(self.weights.values())).device
        self.parameters: Parameters = {
            shape: {
                key: tensor.detach().clone().to(device).requires_grad_(True)
                for key, tensor in parameters[shape].items()
            }
            for shape in self.members
        }
        self.optimiser = torch.optim.Adam(self._leaves(), lr=config.meta_lr)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Module → its weight."""
        return self._edited.current

    def train_step(self, batches: Sequence[EditBatch]) -> ReferenceTrajectory:
        """One trajectory, one clip, one optimiser step; the model is W_0 again afterwards."""
        trajectory = self.trajectory(batches)
        self._optimise()
        return trajectory

    def train_batch(self, batch: EditBatch) -> ReferenceTrajectory:
        """MALMEN's and MEND's training: one optimiser step per batch, on the unedited model."""
        return self.train_step([batch])

    def trajectory(self, batches: Sequence[EditBatch]) -> ReferenceTrajectory:
        """Edit with batch after batch and accumulate the hypernetwork's gradient of Σ_t L_t."""
        self.optimiser.zero_grad(set_to_none=True)
        steps = []
        for t in range(len(batches)):
            window = [batches[t - j] for j in range(min(self.config.depth, t + 1))]
            steps.append(self.step(window))
        self.reset()
        gradients = {
            shape: {k: gradient_of(p).clone() for k, p in tensors.items()}
            for shape, tensors in self.parameters.items()
        }
        return ReferenceTrajectory(gradients=gradients, steps=tuple(steps))

    def step(self, window: Sequence[EditBatch]) -> ReferenceStep:
        """One batch of a trajectory: edit with it and add the gradient of its L_t.

        Args:
            window: The batches that L_t scores, newest first; the newest is written into the model.
        """
        actions = self.predict(window[0])
        deltas = {name: action.delta for name, action in actions.items()}
        config = self.config
        losses = reference_reward(self.model, self._edited, window, deltas, config)
        losses["norm"] = sum(a.shift.square().sum().item() for a in actions.values())
        losses["total"] = (
            losses["equivalent"]
            + config.loc_coef * losses["unrelated"]
            + config.reg_coef * losses["norm"]
        )
        for name, action in actions.items():
            self._differentiate(action, gradient_of(self.weights[name]).T)
            self.weights[name].grad = None
        self._edited.add(deltas)
        shifts = {name: action.shift for name, action in actions.items()}
        return ReferenceStep(shifts=shifts, losses=losses)

    def edit(self, batch: EditBatch) -> dict[str, Tensor]:
        """Write one batch into the model; returns the dense shifts (d_in, d_out) by module."""
        actions = self.predict(batch)
        self._edited.add({name: action.delta for name, action in actions.items()})
        return {name: action.shift for name, action in actions.items()}

    def reset(self) -> None:
        """Put W_0 back; moments and hypernetwork stay."""
        self._edited.write(self._edited.original)

    def predict(self, batch: EditBatch) -> dict[str, ReferenceAction]:
        """Capture, update the moments with all modules of a shape, then predict each module."""
        captured, _ = reference_capture(self.model, batch.edit, self.modules, self.config.tokens)
        actions: dict[str, ReferenceAction] = {}
        for shape, names in self.members.items():
            dtype = self.parameters[shape]["log_ridge"].dtype
            rows = {name: torch.cat(captured[name], 1).to(dtype) for name in names}
            self.moments[shape].add(torch.cat(list(rows.values())))
            for index, name in enumerate(names):
                keys, z = rows[name][:, : shape[0]], self.moments[shape].normalise(rows[name])
                with torch.no_grad():
                    shift = self._shift(shape, index, keys, z)
                actions[name] = ReferenceAction(
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
        return reference_shift(
            keys, differences(keys, left, right, step), self._ridge(shape, index)
        )

    def _network(self, shape: Shape, index: int, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K̃ (n, d_in), Ṽ (n, d_out) and η_j."""
        tensors = self.parameters[shape]
        h = reference_network(z, tensors, index)
        step = tensors["step_parameter"].reshape(-1)[index]
        if self.config.step_form == "log":
            step = self.config.initial_step * step.exp()
        return h[:, : shape[0]], h[:, shape[0] :], step

    def _ridge(self, shape: Shape, index: int) -> Tensor:
        return self.parameters[shape]["log_ridge"].reshape(-1)[index].exp()

    def _differentiate(self, action: ReferenceAction, weight_gradient: Tensor) -> None:
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
            d_differences, d_ridge = reference_shift_gradient(
                action.keys, action.shift, ridge, outer
            )
        left, right, step = self._network(action.shape, action.index, action.normalised)
        asked = differences(action.keys, left, right, step)
        torch.autograd.backward([asked, ridge], [d_differences, d_ridge])

    def _leaves(self) -> list[Tensor]:
        return [p for tensors in self.parameters.values() for p in tensors.values()]

    def _optimise(self) -> None:
        """Clip the joint norm of all networks to `max_grad_norm`, then one Adam step."""
        leaves = [p for p in self._leaves() if p.grad is not None]
        limit = self.config.max_grad_norm
        if limit is not None:
            norm = math.sqrt(sum(gradient_of(p).square().sum().item() for p in leaves))
            for p in leaves:
                gradient_of(p).mul_(min(1.0, limit / (norm + 1e-6)))
        self.optimiser.step()
