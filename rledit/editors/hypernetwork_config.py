"""Settings of the hypernetwork methods, one class for MEND, MALMEN, RLEdit and their relatives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from rledit.capture import Tokens
from rledit.editors.base import Stopping
from rledit.editors.conventions import (
    CONVERGED,
    CONVERGED_SETTINGS,
    FROM_RECIPE,
    OFFICIAL,
    PAPER,
    PAPER_SETTINGS,
    Clipping,
    Conventions,
    IncompleteGroups,
    Recipe,
    take_from_recipe,
)
from rledit.editors.sphere import SPHERE_OFF, SphereSettings
from rledit.moments import Formula
from rledit.reward import KLReference, LocalityGradient
from rledit.step_size import (
    AUTO,
    SettingError,
    Step,
    StepForm,
    check_initial_ridge,
    check_past_keys,
    check_step,
    check_z_clip,
)
from rledit.tokenization import Order

Rule = Literal["normal_equation", "outer_product"]
MomentsScope = Literal["lifelong", "trajectory"]
Drawing = Literal["independent", "epochs"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class HypernetworkConfig(SphereSettings):
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
        initial_ridge: Ridge λ of every module's equation at the start; it is learned.
        loss_group: Samples per loss group; part of the numerics.
        transition: Carry the edited weights from batch to batch while training.
        optimise: Optimiser step once per trajectory, or after every batch.
        train_steps: Training steps, each on `trajectories_per_step` trajectories. One is an
            optimiser step, or with `optimise: batch` one per batch. Where training may end before
            (`patience`), the most that there are.
        trajectory_batches: Batches per trajectory; None: as many as the stream has.
        trajectories_per_step: Trajectories whose gradients are averaged in one optimiser step.
            Lifelong moments run on from one to the next.
        drawing: How trajectories come from the train pool. `epochs`: no edit twice before all have
            been seen, each epoch in an order of its own; `independent`: each is drawn anew.
        augment: Train on variants of the edits: in half of them the prompt and a rephrase change
            places, and any of the locality prompts counts, see `rledit.augmentation`.
        patience: Validations in a row without improvement that end the training; the best state
            is put back then. 0: none is made, and training goes on to `train_steps`.
        validate_every: Training steps between two validations.
        min_improvement: Points that the mean of efficacy, generalisation and specificity has to
            rise above the best one so far to count as better.
        validation_batches: Batches of the validation stream, all of which is scored after its last
            one; None: as many as the evaluation stream has and the pool holds, 20 at most.
        step_search: Factors on all learned steps η that are tried once training has ended and the
            best state is put back: each is validated, and the one with the highest mean stays. 1,
            the steps as learned, is always among them; where the best is another one and the last
            on its side, up to three more are tried beyond. Needs `patience`; empty: nothing is
            tried.
        meta_lr: Adam's learning rate.
        warmup_steps: Optimiser steps over which the learning rate rises to `meta_lr`.
        schedule: The learning rate after the warm-up: `constant`, or falling over `train_steps` by
            half a `cosine` to a fiftieth of itself.
        weight_decay: Decay of the blocks' matrices in every optimiser step, times the learning
            rate (as AdamW's); steps, ridges, biases and scales have none.
        average: Decay of a running mean of the weights over optimiser steps, which validation and
            editing take in place of the last weights; 0: none is kept. Young means forget faster:
            after k steps the decay is (1 + k) / (10 + k) at most.
        scalar_lr_factor: Learning rate of steps and ridges relative to `meta_lr`.
        max_grad_norm: Joint clipping norm over all networks.
        loc_coef: λ_loc of the reward.
        prompt_coef: Weight in the reward of the cross-entropy on the edited prompts themselves;
            the publication rewards rephrases alone, which is 0.
        loc_warmup: Optimiser steps over which λ_loc rises to `loc_coef`.
        reg_coef: η_reg of the shift's squared norm.
        decay: μ of memory backtracking.
        depth: k, batches scored per step, the current one counted.
        window_share: Share of the prompts of older batches in the window that a step scores, drawn
            anew at each step and weighted by its inverse: a long window at the cost of a short one.
            Needs `kl_reference: pretrained`, as the other reference is renewed with every prompt.
        discount: γ of the return over a trajectory.
        update_moments_while_editing: Let the stream's rows enter the running moments. Where
            training has left none, those of its first batch enter all the same.
        moments_scope: `lifelong` moments run on from trajectory to trajectory and into the stream,
            as in the releases; `trajectory` begins each trajectory, and the stream, with none.
        z_clip: Bound of the entries of normalised rows, keys and value gradients alike, in
            training as in editing: they are clamped to ±`z_clip`. 0: none.
        past_keys: w, the weight of the keys of earlier batches in the shift's equation, see
            `rledit.editors.past_keys`: a shift then changes little of what the layers give for
            those keys. An extension of ours; it keeps d_in² numbers a module. 0: none, as
            published.
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
    initial_ridge: float = 1.0
    loss_group: int = 4
    transition: bool = True
    optimise: Literal["trajectory", "batch"] = FROM_RECIPE
    train_steps: int = FROM_RECIPE
    trajectory_batches: int | None = None
    trajectories_per_step: int = 1
    drawing: Drawing = FROM_RECIPE
    augment: bool = FROM_RECIPE
    patience: int = FROM_RECIPE
    validate_every: int = FROM_RECIPE
    min_improvement: float = 0.0
    validation_batches: int | None = None
    step_search: tuple[float, ...] = FROM_RECIPE
    meta_lr: float = FROM_RECIPE
    warmup_steps: int = FROM_RECIPE
    schedule: Schedule = FROM_RECIPE
    weight_decay: float = 0.0
    average: float = 0.0
    scalar_lr_factor: float = FROM_RECIPE
    max_grad_norm: float = 1.0
    loc_coef: float = FROM_RECIPE
    prompt_coef: float = FROM_RECIPE
    loc_warmup: int = 0
    reg_coef: float = 1e-4
    decay: float = 0.95
    depth: int = FROM_RECIPE
    window_share: float = FROM_RECIPE
    discount: float = 1.0
    update_moments_while_editing: bool = True
    moments_scope: MomentsScope = FROM_RECIPE
    z_clip: float = FROM_RECIPE
    past_keys: float = 0.0
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
    younger: ClassVar[Mapping[str, Any]] = {
        "initial_ridge": 1.0,
        "drawing": "independent",
        "augment": False,
        "patience": 0,
        "validate_every": 1,
        "min_improvement": 0.0,
        "validation_batches": None,
        "step_search": (),
        "warmup_steps": 0,
        "schedule": "constant",
        "window_share": 1.0,
        "weight_decay": 0.0,
        "average": 0.0,
        "loc_warmup": 0,
        "prompt_coef": 0.0,
        "z_clip": 0.0,
        "past_keys": 0.0,
        **SPHERE_OFF,
    }
    """Settings that came later, with what all results had until then: these are known without."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step(self, "initial_step")
        searches = self.step_search is not FROM_RECIPE
        take_from_recipe(self, self.recipe_settings(self.reference))
        if not self.patience and not searches:
            object.__setattr__(self, "step_search", ())  # the recipe's, without its validation
        self._check_step_search()
        for name, unset in (("min_improvement", 0.0), ("validation_batches", None)):
            if not self.patience and getattr(self, name) != unset:
                raise SettingError(
                    name,
                    "patience 0 makes no validation; set patience to 1 or more, or leave it out",
                )
        check_z_clip(self)
        check_past_keys(self)
        check_initial_ridge(self)
        if self.rule != "normal_equation":
            for name, unset in (("past_keys", 0), ("initial_ridge", 1)):
                if getattr(self, name) != unset:
                    raise SettingError(
                        name, f"rule {self.rule} solves no equation; leave it {unset}"
                    )
        if not self.average < 1:
            raise SettingError("average", f"a decay is below 1, not {self.average}")
        if self.depth < 1:
            raise ValueError(f"depth counts the current batch: at least 1, not {self.depth}")
        if not self.transition and self.depth > 1:
            raise ValueError(
                f"depth {self.depth}: without transition each batch is trained on its own, with "
                "nothing to backtrack to; set depth to 1"
            )

        if not 0 < self.window_share <= 1:
            raise SettingError(
                "window_share", f"a share is above 0 and at most 1, not {self.window_share}"
            )
        clipping = self.conventions().clipping
        one_step = self.optimise == "trajectory" and clipping == "optimiser_step"
        if self.trajectories_per_step != 1 and not one_step:
            raise SettingError(
                "trajectories_per_step",
                f"{self.trajectories_per_step}: gradients are averaged where there is one step, "
                "clipped once, per trajectory; set optimise: trajectory and clipping: "
                "optimiser_step, or leave it at 1",
            )
        previous = self.conventions().kl_reference == "previous"
        if self.window_share < 1 and self.depth > 1 and previous:
            raise SettingError(
                "window_share",
                "kl_reference: previous renews its references with every prompt of the window; set "
                "window_share to 1, or kl_reference to pretrained",
            )

    def _check_step_search(self) -> None:
        """Refuse factors that scale nothing, and a search that has nothing to choose by.

        Raises:
            SettingError: Says which.
        """
        factors = self.step_search
        for factor in factors:
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if not number or not math.isfinite(factor) or factor <= 0:
                raise SettingError(
                    "step_search", f"a factor is a finite number above 0, not {factor!r}"
                )
        if len(set(factors)) < len(factors):
            raise SettingError("step_search", f"a factor is there twice: {list(factors)}")
        if factors and not self.patience:
            raise SettingError(
                "step_search",
                "factors are chosen on the validation stream, and patience 0 makes no validation; "
                "set patience to 1 or more, or leave step_search out",
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

    @property
    def stopping(self) -> Stopping | None:
        """When training ends before its limit; None where it does not."""
        if not self.patience:
            return None
        return Stopping(
            patience=self.patience,
            validate_every=self.validate_every,
            min_improvement=self.min_improvement,
            batches=self.validation_batches,
            step_search=tuple(self.step_search),
        )
