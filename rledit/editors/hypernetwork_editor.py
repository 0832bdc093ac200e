"""Training and editing with a hypernetwork: the machinery of MEND, MALMEN and RLEdit.

The methods differ in three settings: how the network's output becomes a shift (outer product or
normal equation), whether training carries the edited weights along the trajectory, and whether the
optimiser steps once per batch or once per trajectory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rledit.capture import Tokens
from rledit.editors.base import BatchTrained, State, TrainableEditor, prefixed, unprefixed
from rledit.editors.conventions import (
    CONVERGED,
    CONVERGED_SETTINGS,
    FROM_RECIPE,
    OFFICIAL,
    PAPER,
    PAPER_SETTINGS,
    BatchConventions,
    Clipping,
    Conventions,
    IncompleteGroups,
    Recipe,
)
from rledit.editors.moment_editor import MomentEditor, Proposal, Shape
from rledit.editors.under_way import PREFIX, UnderWay, places_of, put_back
from rledit.finite import NonFiniteError, require_finite
from rledit.hypernetwork import Hypernetwork, StepForm
from rledit.model import EditableModel
from rledit.moments import Formula
from rledit.records import Probe
from rledit.reward import KLReference, LocalityGradient, Reward, RewardConfig
from rledit.shift import Solution, solve_normal_equation
from rledit.steps import AUTO, Step, check_step
from rledit.tokenization import EditBatch, Order

logger = logging.getLogger(__name__)

Rule = Literal["normal_equation", "outer_product"]
MomentsScope = Literal["lifelong", "trajectory"]


@dataclass(frozen=True, kw_only=True)
class HypernetworkConfig:
    """Settings of a hypernetwork editor. Defaults are RLEdit's (arXiv 2502.05759, appendix).

    Attributes:
        modules: Target modules, see `rledit.families.edited_modules`.
        rule: How pseudo keys and values become a shift.
        tokens: Positions whose rows enter: those that predict answer tokens, or all.
        rank: Rank of the network's blocks.
        n_blocks: Number of blocks.
        init_std: Standard deviation of the blocks' first factor at the start; `auto`: 1/√d.
        initial_step: Step η of every module at the start; `auto` is calibrated, see
            `rledit.calibration`.
        loss_group: Samples per loss group; part of the numerics.
        transition: Carry the edited weights from batch to batch while training.
        optimise: Optimiser step once per trajectory, or after every batch.
        train_steps: Optimiser steps, each on `trajectories_per_step` trajectories.
        trajectory_batches: Batches per trajectory; None: as many as the stream has.
        trajectories_per_step: Trajectories whose gradients are averaged in one optimiser step.
            Lifelong moments run on from one to the next.
        meta_lr: Adam's learning rate.
        scalar_lr_factor: Learning rate of steps and ridges relative to `meta_lr`.
        max_grad_norm: Joint clipping norm over all networks.
        loc_coef: λ_loc of the reward.
        reg_coef: η_reg of the shift's squared norm.
        decay: μ of memory backtracking.
        depth: k, batches scored per step, the current one counted.
        discount: γ of the return over a trajectory.
        update_moments_while_editing: Let the stream's rows enter the running moments.
        moments_scope: `lifelong` moments run on from trajectory to trajectory and into the stream,
            as in the releases; `trajectory` begins each trajectory, and the stream, with none.
        seed: Seed of the network's start.
        reference: The recipe. `official` repeats the authors' release, departures and all; `paper`
            has the published equations and settings without them; `converged` is our training.
            It decides every setting whose default is the recipe's.
        regularisation_gradient, locality_gradient, clipping, kl_reference, moments, step_form,
        incomplete_groups, order: Override one convention of `reference`; see
            `rledit.editors.conventions.Conventions`.
    """

    modules: tuple[str, ...]
    rule: Rule = "normal_equation"
    tokens: Tokens = "answer"
    rank: int = FROM_RECIPE
    n_blocks: int = FROM_RECIPE
    init_std: float | Literal["auto"] = FROM_RECIPE
    initial_step: Step = AUTO
    loss_group: int = 4
    transition: bool = True
    optimise: Literal["trajectory", "batch"] = FROM_RECIPE
    train_steps: int = FROM_RECIPE
    trajectory_batches: int | None = None
    trajectories_per_step: int = 1
    meta_lr: float = FROM_RECIPE
    scalar_lr_factor: float = FROM_RECIPE
    max_grad_norm: float = 1.0
    loc_coef: float = FROM_RECIPE
    reg_coef: float = 1e-4
    decay: float = 0.95
    depth: int = FROM_RECIPE
    discount: float = 1.0
    update_moments_while_editing: bool = True
    moments_scope: MomentsScope = FROM_RECIPE
    seed: int = 0
    reference: Recipe = "paper"
    regularisation_gradient: bool | None = None
    locality_gradient: LocalityGradient | None = None
    clipping: Clipping | None = None
    kl_reference: KLReference | None = None
    moments: Formula | None = None
    step_form: StepForm | None = None
    incomplete_groups: IncompleteGroups | None = None
    order: Order | None = None

    official: ClassVar[Conventions] = OFFICIAL
    published: ClassVar[Mapping[str, Any]] = {}
    """The method's published settings, where they are not RLEdit's."""

    def __post_init__(self) -> None:
        check_step(self, "initial_step")
        for name, value in self.recipe_settings(self.reference).items():
            if getattr(self, name) is FROM_RECIPE:
                object.__setattr__(self, name, value)
        if self.depth < 1:
            raise ValueError(f"depth counts the current batch: at least 1, not {self.depth}")
        if not self.transition and self.depth > 1:
            raise ValueError(
                f"depth {self.depth}: without transition each batch is trained on its own, with "
                "nothing to backtrack to; set depth to 1"
            )

    @classmethod
    def recipe_settings(cls, recipe: Recipe) -> dict[str, Any]:
        """What a recipe says of the settings whose default is the recipe's."""
        ours = CONVERGED_SETTINGS if recipe == "converged" else {}
        return {**PAPER_SETTINGS, **cls.published, **ours}

    def conventions(self) -> Conventions:
        """The conventions of `reference`, with this configuration's overrides."""
        base = {"official": self.official, "paper": PAPER, "converged": CONVERGED}[self.reference]
        chosen = {f.name: getattr(self, f.name) for f in fields(Conventions)}
        return replace(base, **{k: v for k, v in chosen.items() if v is not None})


class HypernetworkEditor(TrainableEditor, MomentEditor):
    """An editor whose shifts come from a trained hypernetwork, one per linear shape."""

    config: HypernetworkConfig
    step_setting = "initial_step"
    trains_on: ClassVar[frozenset[Probe]] = frozenset({"rephrase", "locality prompt"})

    @classmethod
    def trains_on_of(cls, config: HypernetworkConfig) -> frozenset[Probe]:
        """Rephrases, and locality prompts where they count in the reward."""
        return cls.trains_on if config.loc_coef else cls.trains_on - {"locality prompt"}

    @classmethod
    def batch_conventions_of(cls, config: HypernetworkConfig) -> BatchConventions:
        """Order, loss groups and moments of the recipe."""
        return config.conventions()

    def __init__(self, model: EditableModel, config: HypernetworkConfig) -> None:
        self.conventions = config.conventions()
        one_step = config.optimise == "trajectory" and self.conventions.clipping == "optimiser_step"
        if config.trajectories_per_step != 1 and not one_step:
            raise ValueError(
                f"trajectories_per_step: {config.trajectories_per_step}: gradients are averaged "
                "where there is one step, clipped once, per trajectory; set optimise: trajectory "
                "and clipping: optimiser_step"
            )
        self.tokens = config.tokens
        super().__init__(model, config)
        self.networks = self._new_networks()
        scalars = [n.step_parameter for n in self.networks.values()]
        scalars += [n.log_ridge for n in self.networks.values()]
        ids = {id(p) for p in scalars}
        others = [p for p in self._parameters() if id(p) not in ids]
        self.optimiser = torch.optim.Adam(
            [
                {"params": others, "lr": config.meta_lr},
                {"params": scalars, "lr": config.meta_lr * config.scalar_lr_factor},
            ]
        )
        self._under_way: UnderWay | None = None
        self._saved_step: State = {}
        self._reward = RewardConfig(
            loc_coef=config.loc_coef,
            decay=config.decay,
            depth=config.depth,
            kl_reference=self.conventions.kl_reference,
            locality_gradient=self.conventions.locality_gradient,
        )

    @property
    def updates_moments_while_editing(self) -> bool:
        """Whether the stream's rows enter the moments."""
        return self.config.update_moments_while_editing

    @property
    def train_steps(self) -> int:
        """Number of trajectories to train on."""
        return self.config.train_steps

    def trajectory_length(self, stream_length: int) -> int:
        """Batches per trajectory: the stream's own length unless the configuration fixes one."""
        return self.config.trajectory_batches or stream_length

    def solve(self, shape: Shape, keys: Tensor, z: Tensor) -> Solution:
        """Shift factors from the network's pseudo keys and values, by the configured rule."""
        return self._solution(shape, keys, *self._factors(shape, keys, z))

    def solve_incomplete(self, shape: Shape, keys: Tensor, z: Tensor, true_z: Tensor) -> Solution:
        """As the release trains on a batch whose last loss group is not full.

        The batch is edited with zeroed value gradients, and the network's gradient is taken as if
        it had been edited with the true ones: shift and gradient disagree.
        """
        factors = self._factors(shape, keys, z)
        if torch.is_grad_enabled():
            true = self._factors(shape, keys, true_z)
            factors = tuple(
                a.detach() + (b - b.detach()) for a, b in zip(factors, true, strict=True)
            )
        return self._solution(shape, keys, *factors)

    def _factors(self, shape: Shape, keys: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """(M, n, ...) what the rule is solved from: pseudo keys and values, or differences D."""
        network = self.networks[shape]
        pseudo_keys, pseudo_values = network(z)
        step = network.step[:, None, None]
        if self.config.rule == "outer_product":
            return pseudo_keys, -step * pseudo_values
        agreement = (keys * pseudo_keys).sum(-1, keepdim=True)
        return (-step * agreement * pseudo_values,)

    def _solution(self, shape: Shape, keys: Tensor, *factors: Tensor) -> Solution:
        """Shift factors by the configured rule."""
        if self.config.rule == "outer_product":
            pseudo_keys, differences = factors
            none = torch.ones(len(keys), device=keys.device)
            return Solution(pseudo_keys, differences, none, 0.0)
        ridge = self.networks[shape].ridge
        return solve_normal_equation(keys, factors[0], ridge, self.named(shape))

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

    def _begin_step(self, trajectories: Sequence[Sequence[EditBatch]]) -> UnderWay:
        """A new step, or the one that was saved half-way."""
        saved, self._saved_step = self._saved_step, {}
        if saved:
            return put_back(saved, self.model, self._parameters(), trajectories, self._new_reward())
        self.optimiser.zero_grad(set_to_none=True)
        return UnderWay()

    def _run(self, trajectory: Sequence[EditBatch], t: int, step: UnderWay, share: float) -> None:
        """Run a batch of a trajectory, whose gradients enter with the weight `share`."""
        if t == 0:
            self.model.prefix_cache.clear()
            self._begin_moments()
            step.begin(self._new_reward())
        assert step.reward is not None
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
            step.reward = self._new_reward()
        if t + 1 == len(trajectory):
            self.model.weights.restore()
            self._begin_moments()
            step.reward = None
            logger.info(
                "%d batches: prefixes found %.0f %%", t + 1, 100 * self.model.prefix_cache.hit_rate
            )

    def _new_reward(self) -> Reward:
        return Reward(self.model, self._reward)

    def _train_batch(self, batch: EditBatch, reward: Reward, weight: float) -> dict[str, float]:
        """Edit with one batch and add the gradient of its reward to the networks."""
        batch.require(self.trains_on_of(self.config))
        reward.observe(batch)
        with torch.enable_grad():
            proposal = self.propose(batch)
        self.merge(proposal)
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

    def _begin_moments(self) -> None:
        if self.config.moments_scope == "trajectory":
            for moments in self.moments.values():
                moments.reset()

    def _clip(self) -> float:
        """Clip the joint gradient norm over all networks; returns the norm before.

        Raises:
            NonFiniteError: It is not finite; the networks are left as they are.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters(), self.config.max_grad_norm))
        require_finite(
            {"grad_norm": norm}, "with this initial_step, the gradient of the hypernetworks"
        )
        return norm

    def _step(self) -> None:
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for network in self.networks.values() for p in network.parameters()]

    def _new_networks(self) -> dict[Shape, Hypernetwork]:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return {
                shape: Hypernetwork(
                    *shape,
                    len(names),
                    rank=config.rank,
                    n_blocks=config.n_blocks,
                    initial_step=self.step_size,
                    step_form=self.conventions.step_form,
                    init_std=_scale(config.init_std, shape),
                ).to(self.model.device, self.model.compute_dtype)
                for shape, names in self.shapes.items()
            }

    def state_dict(self) -> State:
        """Networks and moments."""
        state = super().state_dict()
        for (d_in, d_out), network in self.networks.items():
            copies = {k: v.detach().clone() for k, v in network.state_dict().items()}
            state |= prefixed(f"network.{d_in}x{d_out}.", copies)
        return state

    def load_state_dict(self, state: State) -> None:
        """Put saved networks and moments back."""
        super().load_state_dict(state)
        for (d_in, d_out), network in self.networks.items():
            network.load_state_dict(unprefixed(f"network.{d_in}x{d_out}.", state))

    def training_state_dict(self) -> State:
        """Networks, moments and the optimiser's moments, and the step under way."""
        state = self.state_dict()
        if self._under_way is not None:
            state |= self._under_way.state_dict(self.model, self._parameters())
        state |= self._saved_step
        for i, values in self.optimiser.state_dict()["state"].items():
            copies = {k: torch.as_tensor(v).clone() for k, v in values.items()}
            state |= prefixed(f"optimiser.{i}.", copies)
        return state

    def load_training_state_dict(self, state: State) -> None:
        """Put a saved training state back."""
        self.load_state_dict(state)
        self._saved_step = prefixed(PREFIX, unprefixed(PREFIX, state))
        slots: dict[int, State] = {}
        for key, value in unprefixed("optimiser.", state).items():
            index, _, name = key.partition(".")
            slots.setdefault(int(index), {})[name] = value
        whole = self.optimiser.state_dict()
        self.optimiser.load_state_dict({"state": slots, "param_groups": whole["param_groups"]})


def _scale(init_std: float | Literal["auto"], shape: Shape) -> float:
    """The standard deviation of a network's first factors: 1/√d keeps the size of a row."""
    return float(sum(shape) ** -0.5) if init_std == "auto" else init_std


def _gradient(leaf: Tensor) -> Tensor:
    """A leaf's gradient; zeros where no micro-batch reached it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
