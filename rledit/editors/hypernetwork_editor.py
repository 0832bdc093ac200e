"""Training and editing with a hypernetwork: the machinery of MEND, MALMEN and RLEdit.

The methods differ in three settings: how the network's output becomes a shift (outer product or
normal equation), whether training carries the edited weights along the trajectory, and whether the
optimiser steps once per batch or once per trajectory.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rledit.capture import Tokens
from rledit.editors.base import State, TrainableEditor, prefixed, unprefixed
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
from rledit.hypernetwork import Hypernetwork, StepForm
from rledit.model import EditableModel
from rledit.moments import Formula
from rledit.records import Probe
from rledit.reward import KLReference, LocalityGradient, ReferenceCache, Reward, RewardConfig
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
        modules: Edited linears, see `rledit.families.edited_modules`.
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
            It decides every setting below and above whose default is `FROM_RECIPE`.
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
        """What a recipe says of the settings whose default is `FROM_RECIPE`."""
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
        self._references = ReferenceCache()
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
        self.optimiser.zero_grad(set_to_none=True)
        found = [self._run(trajectory, 1 / len(trajectories)) for trajectory in trajectories]
        totals = {key: sum(f[key] for f in found) / len(found) for key in found[0]}
        if self.config.optimise == "trajectory":
            if self.conventions.clipping == "optimiser_step":
                totals["grad_norm"] = self._clip()
            self._step()
        return totals

    def _run(self, trajectory: Sequence[EditBatch], share: float) -> dict[str, float]:
        """Run one trajectory; its gradients enter with the weight `share`."""
        # A step depends on no earlier one through a cache's last bits: training that is resumed
        # before it goes on bit by bit.
        self.model.trunk.clear()
        self._references.clear()
        self._begin_moments()
        reward = Reward(self.model, self._reward, self._references)
        totals = {"loss": 0.0, "equivalence": 0.0, "divergence": 0.0, "norm": 0.0}
        grad_norm = 0.0
        for t, batch in enumerate(trajectory):
            measured = self._train_batch(batch, reward, share * self.config.discount**t)
            for key, value in measured.items():
                totals[key] += value / len(trajectory)
            if self.config.optimise == "batch":
                grad_norm = self._clip()
                self._step()
            elif self.conventions.clipping == "every_batch":
                grad_norm = self._clip()
            if not self.config.transition:
                self.model.weights.restore()
                reward = Reward(self.model, self._reward, self._references)
        self.model.weights.restore()
        self._begin_moments()
        logger.info(
            "%d batches: prefixes found %.0f %%, references found %.0f %%",
            len(trajectory),
            100 * self.model.trunk.hit_rate,
            100 * self._references.hit_rate,
        )
        return totals | {"grad_norm": grad_norm}

    def _train_batch(self, batch: EditBatch, reward: Reward, weight: float) -> dict[str, float]:
        """Edit with one batch and add the gradient of its reward to the networks."""
        batch.require(self.trains_on_of(self.config))
        with torch.enable_grad():
            proposal = self.propose(batch)
        reward.observe(batch)
        self.merge(proposal)
        leaves = {n: s.detached(requires_grad=True) for n, s in proposal.shifts.items()}
        terms = reward.backward(leaves)
        norm = proposal.squared_norm()
        self._backward(proposal, leaves, norm, weight)
        regularisation = self.config.reg_coef * float(norm.detach())
        return {
            "loss": terms.total + regularisation,
            "equivalence": terms.equivalence[0],
            "divergence": terms.divergence[0],
            "norm": float(norm.detach().sqrt()),
        }

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
        """Clip the joint gradient norm over all networks; returns the norm before."""
        return float(nn.utils.clip_grad_norm_(self._parameters(), self.config.max_grad_norm))

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
        """Networks, moments and the optimiser's moments."""
        state = self.state_dict()
        for i, values in self.optimiser.state_dict()["state"].items():
            copies = {k: torch.as_tensor(v).clone() for k, v in values.items()}
            state |= prefixed(f"optimiser.{i}.", copies)
        return state

    def load_training_state_dict(self, state: State) -> None:
        """Put a saved training state back."""
        self.load_state_dict(state)
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
    """A leaf's gradient; zeros where no chunk reached it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
