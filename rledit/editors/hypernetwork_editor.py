"""Training and editing with a hypernetwork: the machinery of MEND, MALMEN and RLEdit.

The methods differ in three settings: how the network's output becomes a shift (outer product or
normal equation), whether training carries the edited weights along the trajectory, and whether the
optimiser steps once per batch or once per trajectory.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from rledit.editors.base import (
    BatchTrained,
    State,
    Stopping,
    TrainableEditor,
    prefixed,
    unprefixed,
)
from rledit.editors.hypernetwork_config import HypernetworkConfig
from rledit.editors.hypernetwork_update import HypernetworkUpdate
from rledit.editors.meta_optimiser import (
    RunningMean,
    adam_state,
    cosine,
    load_adam_state,
    new_optimiser,
    ramp,
    set_learning_rates,
    steps_made,
)
from rledit.editors.moment_editor import MomentEditor, Proposal
from rledit.editors.training_state import PREFIX, UnderWay, places_of, put_back
from rledit.finite import NonFiniteError, require_finite
from rledit.lazy_torch import Tensor, nn, torch
from rledit.model import EditableModel
from rledit.records import Probe
from rledit.reward import Reward, RewardConfig
from rledit.tokenization import EditBatch, Sample

logger = logging.getLogger(__name__)

STORED_AHEAD = 20
"""Batches whose prompts enter the prefix store together."""


class HypernetworkEditor(TrainableEditor, HypernetworkUpdate):
    """An editor whose shifts come from a trained hypernetwork, one per linear shape."""

    trains_on: ClassVar[frozenset[Probe]] = frozenset({"rephrase", "locality prompt"})
    work_kind = "trained"

    @classmethod
    def trains_on_of(cls, config: HypernetworkConfig) -> frozenset[Probe]:
        """Rephrases, and locality prompts where they count in the reward."""
        return cls.trains_on if config.loc_coef else cls.trains_on - {"locality prompt"}

    @classmethod
    def stopping_of(cls, config: HypernetworkConfig) -> Stopping | None:
        """Patience and what belongs to it."""
        return config.stopping

    def __init__(self, model: EditableModel, config: HypernetworkConfig) -> None:
        super().__init__(model, config)
        self.optimiser = new_optimiser(list(self.networks.values()), config)
        self._mean: RunningMean | None = None
        self._total_steps = 0  # optimiser steps of the whole training, known when it begins
        self._under_way: UnderWay | None = None
        self._saved_step: State = {}
        self._reward = RewardConfig(
            loc_coef=config.loc_coef,
            prompt_coef=config.prompt_coef,
            decay=config.decay,
            depth=config.depth,
            window_share=config.window_share,
            seed=config.seed,
            kl_reference=self.conventions.kl_reference,
            locality_gradient=self.conventions.locality_gradient,
        )

    @property
    def train_steps(self) -> int:
        """Training steps, at most where training may end before."""
        return self.config.train_steps

    def trajectory_length(self, stream_length: int) -> int:
        """Batches per trajectory: the stream's own length unless the configuration fixes one."""
        return self.config.trajectory_batches or stream_length

    @property
    def trajectories_per_step(self) -> int:
        """Trajectories that an optimiser step averages over."""
        return self.config.trajectories_per_step

    def train_step(self, *trajectories: Sequence[EditBatch]) -> dict[str, float]:
        """Run trajectories and update the networks; the weights are restored after each."""
        *_, last = self.train_batches(*trajectories)
        return last.metrics or {}

    def train_batches(self, *trajectories: Sequence[EditBatch]) -> Iterator[BatchTrained]:
        """`train_step`, batch by batch; goes on where a loaded state was saved.

        Raises:
            NonFiniteError: A loss or gradient is not finite; names the batch.
        """
        places = places_of(trajectories)
        one = self.config.optimise == "trajectory"
        within = sum(self._steps_within(trajectories[i], t) for i, t in places)
        self._total_steps = self.config.train_steps * (within + (1 if one else len(places)))
        step = self._under_way = self._begin_step(trajectories)
        for i, t in places[step.done :]:
            step.done += 1
            try:
                self._run(trajectories[i], t, step, 1 / len(trajectories))
            except NonFiniteError as error:
                which = f" of trajectory {i + 1}" if len(trajectories) > 1 else ""
                at = f"training, batch {t + 1} of {len(trajectories[i])}{which}"
                raise error.at(at) from None
            if step.done < len(places):
                yield BatchTrained(done=step.done)
        totals = step.means()
        if self.config.optimise == "trajectory":
            if self.conventions.clipping == "optimiser_step":
                try:
                    totals["grad_norm"] = self._clip()
                except NonFiniteError as error:
                    raise error.at(f"training, step after {step.done} batches") from None
            self._step()
        self._under_way = None
        yield BatchTrained(done=step.done, metrics=totals)

    def _steps_within(self, trajectory: Sequence[EditBatch], t: int) -> int:
        """Optimiser steps on batch `t` of a trajectory before the one that may end it."""
        return 0

    def _begin_step(self, trajectories: Sequence[Sequence[EditBatch]]) -> UnderWay:
        """A new step, or the one that was saved half-way."""
        saved, self._saved_step = self._saved_step, {}
        if saved:
            return put_back(saved, self.model, self._parameters(), trajectories, self._new_reward())
        if self._mean is None and self.config.average:
            self._mean = RunningMean(self._parameters(), self.config.average)
        self.optimiser.zero_grad(set_to_none=True)
        return UnderWay()

    def _run(self, trajectory: Sequence[EditBatch], t: int, step: UnderWay, share: float) -> None:
        """Run a batch of a trajectory, whose gradients enter with the weight `share`."""
        if t == 0:
            self.model.prefix_cache.clear()
            self._begin_moments()
            made = steps_made(self.optimiser) * self.config.trajectories_per_step
            step.begin(self._new_reward(made + len(step.totals)))
        assert step.reward is not None
        self._store_ahead(trajectory, t)
        measured = self._train_batch(trajectory[t], step.reward, share * self.config.discount**t)
        totals = step.totals[-1]
        for key, value in measured.items():
            totals[key] += value / len(trajectory)
        if self.config.optimise == "batch":
            totals["grad_norm"] = self._clip()
            self._step()
        elif self.conventions.clipping == "every_batch":
            totals["grad_norm"] = self._clip()
        if not self.config.transition:
            self.model.weights.restore()
            self._forget_keys()
            step.reward = self._new_reward()
        if t + 1 == len(trajectory):
            self.model.weights.restore()
            self._begin_moments()
            step.reward = None
            logger.info(
                "%d batches: prefixes found %.0f %%", t + 1, 100 * self.model.prefix_cache.hit_rate
            )

    def _store_ahead(self, trajectory: Sequence[EditBatch], t: int) -> None:
        """Put the prompts of the next batches into the prefix store, if there is one."""
        prefix_cache = self.model.prefix_cache
        if prefix_cache.store is None:
            return
        near, ahead = prompts_of(trajectory[t : t + 1]), trajectory[t : t + STORED_AHEAD]
        if prefix_cache.store.missing(near):
            for _ in prefix_cache.store_ahead(prompts_of(ahead)):
                pass

    def _new_reward(self, trajectory: int = 0) -> Reward:
        return Reward(self.model, self._reward, trajectory)

    def _train_batch(self, batch: EditBatch, reward: Reward, weight: float) -> dict[str, float]:
        """Edit with one batch and add the gradient of its reward to the networks."""
        batch.require(self.trains_on_of(self.config))
        reward.observe(batch)
        with torch.enable_grad():
            proposal = self.propose(batch)
        self.merge(proposal)
        reward.loc_coef = self.config.loc_coef * self._ramp(self.config.loc_warmup)
        leaves = {n: s.detached(requires_grad=True) for n, s in proposal.shifts.items()}
        terms = reward.backward(leaves)
        norm = proposal.squared_norm()
        self._backward(proposal, leaves, norm, weight)
        regularisation = self.config.reg_coef * float(norm.detach())
        measured = {
            "loss": terms.total + regularisation,
            "equivalence": terms.equivalence[0],
            "divergence": terms.divergence[0],
            "norm": float(norm.detach().sqrt()),
        }
        require_finite(measured, "the training loss", self.model, batch.edit.samples)
        return measured

    def _backward(
        self, proposal: Proposal, leaves: dict[str, Any], norm: Tensor, weight: float
    ) -> None:
        """Carry the gradients of the shifts' factors on into the networks."""
        outputs: list[Tensor] = []
        gradients: list[Tensor | None] = []
        for shape, names in self.shapes.items():
            solution = proposal.solutions[shape]
            outputs.append(solution.right)
            gradients.append(weight * torch.stack([_gradient(leaves[n].right) for n in names]))
            if solution.left is not None and solution.left.requires_grad:
                outputs.append(solution.left)
                gradients.append(weight * torch.stack([_gradient(leaves[n].left) for n in names]))
        if self.conventions.regularisation_gradient and self.config.reg_coef:
            outputs.append(norm * (self.config.reg_coef * weight))
            gradients.append(None)
        torch.autograd.backward(outputs, gradients)

    def _forget_keys(self) -> None:
        """The model is unedited again: no batch has written anything."""
        if self.past_keys is not None:
            self.past_keys.reset()

    def _begin_moments(self) -> None:
        self._forget_keys()
        if self.config.moments_scope == "trajectory":
            for moments in self.moments.values():
                moments.reset()

    def _clip(self) -> float:
        """Clip the joint gradient norm over all networks; returns the norm before.

        Raises:
            NonFiniteError: It is not finite; the networks are left as they are.
        """
        limit = self.config.max_grad_norm
        norms = [nn.utils.clip_grad_norm_(group, limit) for group in self._clipped_together()]
        for norm in norms:
            require_finite(
                {"grad_norm": float(norm)},
                "with this initial_step, the gradient of the hypernetworks",
            )
        return float(norms[0])

    def _clipped_together(self) -> list[list[nn.Parameter]]:
        """Parameters whose joint gradient norm is clipped, the hypernetworks' first."""
        return [self._parameters()]

    def _step(self) -> None:
        if self.config.warmup_steps or self.config.schedule != "constant":
            training = self._under_way is not None
            share = self._learning_rate(steps_made(self.optimiser)) if training else 1.0
            set_learning_rates(self.optimiser, share)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self._mean is not None:
            self._mean.update(steps_made(self.optimiser))

    def _learning_rate(self, step: int) -> float:
        """Share of the full learning rate in an optimiser step, counted from 0."""
        config = self.config
        share = ramp(step, config.warmup_steps)
        if config.schedule == "cosine" and self._total_steps:
            share *= cosine(step, config.warmup_steps, self._total_steps)
        return share

    def _ramp(self, over: int) -> float:
        """Share of a setting that rises over so many optimiser steps of the training.

        It is a function of the steps made alone, so that a resumed training goes on with it.
        """
        if not over or self._under_way is None:
            return 1.0
        return ramp(steps_made(self.optimiser), over)

    @property
    def training_measures(self) -> dict[str, float]:
        """The steps η of all modules, and the learning rate of the last optimiser step."""
        etas = [eta for network in self.networks.values() for eta in network.step.tolist()]
        last = max(steps_made(self.optimiser) - 1, 0)
        return {
            "eta_min": min(etas),
            "eta_median": statistics.median(etas),
            "eta_max": max(etas),
            "learning_rate": self.config.meta_lr * self._learning_rate(last),
        }

    def scale_steps(self, factor: float) -> None:
        """Multiply the steps η of all modules."""
        for network in self.networks.values():
            network.scale_step(factor)

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Propose shifts and merge them, by the networks that edit."""
        with self._averaged():
            return super().edit(batch)

    @contextmanager
    def edits_aside(self) -> Iterator[None]:
        """Moments and weights return afterwards; editing changes no more than these."""
        moments = MomentEditor.state_dict(self)
        self._forget_keys()
        try:
            with self._averaged():
                yield
        finally:
            self.load_moments(moments)
            self.model.weights.restore()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """With the networks that edit: the running mean of their weights, where one is kept."""
        if self._mean is None:
            yield
        else:
            with self._mean.shown():
                yield

    def state_dict(self) -> State:
        """Networks as they edit, and moments."""
        with self._averaged():
            return super().state_dict()

    def load_state_dict(self, state: State) -> None:
        """Put saved networks and moments back; they edit as they are."""
        super().load_state_dict(state)
        self._mean = None

    def training_state_dict(self) -> State:
        """Networks, moments and the optimiser's moments, and the step under way."""
        state = self.state_dict()
        if self._mean is not None:
            # The networks that are trained, and their mean apart.
            state |= super().state_dict() | prefixed("mean.", self._mean.state_dict())
        if self._under_way is not None:
            state |= self._under_way.state_dict(self.model, self._parameters())
        state |= self._saved_step
        if self.config.schedule != "constant":
            state["total_steps"] = torch.tensor(self._total_steps)
        return state | prefixed("optimiser.", adam_state(self.optimiser))

    def load_training_state_dict(self, state: State) -> None:
        """Put a saved training state back."""
        self.load_state_dict(state)
        if mean := unprefixed("mean.", state):
            self._mean = RunningMean(self._parameters(), self.config.average)
            self._mean.load_state_dict(mean)
        self._total_steps = int(state.get("total_steps", 0))
        self._saved_step = prefixed(PREFIX, unprefixed(PREFIX, state))
        load_adam_state(self.optimiser, unprefixed("optimiser.", state))


def prompts_of(batches: Sequence[EditBatch]) -> list[Sample]:
    """All prompts of some batches."""
    phases = (phase for b in batches for phase in (b.edit, b.equivalent, b.unrelated))
    return [sample for phase in phases for sample in phase.samples]


def _gradient(leaf: Tensor) -> Tensor:
    """A leaf's gradient; zeros where no micro-batch reached it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
