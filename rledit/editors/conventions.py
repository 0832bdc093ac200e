"""Departures of the authors' releases from the papers: each a named choice.

A method's release, its paper and our own training differ in a few named choices. They belong to
the method, never to the data or the batch; docs/methods.md has the same table with its sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from rledit.moments import Formula
from rledit.reward import KLReference, LocalityGradient
from rledit.step_size import StepForm
from rledit.tokenization import Order

Recipe = Literal["official", "paper", "converged"]
UntrainedRecipe = Literal["official", "paper"]
"""The recipes of methods that have nothing to train, so that nothing can converge."""

Clipping = Literal["optimiser_step", "every_batch"]
IncompleteGroups = Literal["keep", "zero_values"]


@dataclass(frozen=True, kw_only=True)
class BatchConventions:
    """How a batch becomes rows [K, V].

    Attributes:
        order: Order of a batch's samples, each prompt kind on its own. It decides which samples
            share a loss group. The releases sort by length, longest first.
        incomplete_groups: What becomes of a last loss group that is not full. `zero_values` keeps
            its keys in the normal equation and takes its value gradients as zero, as the releases
            of RLEdit, MALMEN and UltraEdit do; the running moments see the true rows.
        moments: Formula of the running moments. The releases' variance is inflated, and undefined
            for one-row groups.
    """

    order: Order = "stream"
    incomplete_groups: IncompleteGroups = "keep"
    moments: Formula = "exact"

    def problem(self, batch_size: int, loss_group: int) -> str | None:
        """Why batches of `batch_size` edits cannot be edited in loss groups; None where they can.

        The caller knows where the two numbers were given, and raises.
        """
        if self.incomplete_groups == "zero_values" and batch_size < loss_group:
            return (
                f"a batch of {batch_size} edits has no complete loss group of {loss_group}, and "
                "the official recipe takes the value gradients of an incomplete one as zero; use "
                f"batches of at least {loss_group} edits, a smaller loss_group, or reference: paper"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class Conventions(BatchConventions):
    """How a hypernetwork is trained, beside how a batch becomes rows.

    Attributes:
        regularisation_gradient: Whether η_reg‖S‖² is differentiated. The release detaches its
            inputs, so its coefficient has no effect.
        locality_gradient: Weights at which the divergence's gradient is taken. RLEdit's release
            has un-edited them by then.
        clipping: The release clips the accumulated gradient after every batch, so early batches
            vanish; the paper's single update calls for one clip at the optimiser step.
        kl_reference: The paper compares with the pre-trained model W_0, the release with the
            model before the current batch, W_{t-1}.
        step_form: `raw` learns η itself, which the published meta learning rate of 1e-5 takes from
            1e-6 to 1.1e-5 in its single Adam step: the published strength of an edit rests on it.
            `log` learns η = η₀ exp(s), for a calibrated η₀ with a learning rate of its own.
    """

    regularisation_gradient: bool = True
    locality_gradient: LocalityGradient = "edited"
    clipping: Clipping = "optimiser_step"
    kl_reference: KLReference = "pretrained"
    step_form: StepForm = "raw"


PAPER = Conventions()
CONVERGED = replace(PAPER, step_form="log")
OFFICIAL = Conventions(
    regularisation_gradient=False,
    locality_gradient="unedited",
    clipping="every_batch",
    kl_reference="previous",
    moments="official",
    step_form="raw",
    incomplete_groups="zero_values",
    order="longest_first",
)
OFFICIAL_BATCH = BatchConventions(
    order="longest_first", incomplete_groups="zero_values", moments="official"
)
"""UltraEdit's release, and what RLEdit's does before any training."""

STABLEEDIT_BATCH = BatchConventions(order="longest_first")
"""StableEdit's release keeps incomplete groups, and its variance is the exact one."""

FROM_RECIPE: Final[Any] = None
"""Default of a setting whose value the recipe decides; a configuration holds the value itself."""


def take_from_recipe(config: Any, settings: Mapping[str, Any]) -> None:
    """Give the settings of a frozen configuration that stand at `FROM_RECIPE` their recipe's."""
    for name, value in settings.items():
        if getattr(config, name) is FROM_RECIPE:
            object.__setattr__(config, name, value)


# Settings that a recipe changes. What a recipe does not name here is as in `paper`.
PAPER_SETTINGS: Mapping[str, Any] = {
    "rank": 1024,
    "n_blocks": 4,
    "init_std": 1.0,
    "optimise": "trajectory",
    "train_steps": 1,
    "drawing": "independent",
    "augment": False,
    "patience": 0,
    "validate_every": 1,
    "step_search": (),
    "meta_lr": 1e-5,
    "warmup_steps": 0,
    "schedule": "constant",
    "scalar_lr_factor": 1.0,
    "loc_coef": 0.6,
    "prompt_coef": 0.0,
    "depth": 10,
    "window_share": 1.0,
    "moments_scope": "lifelong",
    "z_clip": 0.0,
}
# A start of scale 1/√d, so that the network can learn at a higher rate than the published one, a
# rate of their own for steps and ridges, and trajectories until a validation stream gains no more.
# Values of a few trials on SmolLM2-135M; docs/training.md says what was measured.
CONVERGED_SETTINGS: Mapping[str, Any] = {
    "rank": 256,
    "n_blocks": 2,
    "init_std": "auto",
    "optimise": "batch",
    "train_steps": 14,
    "drawing": "epochs",
    "augment": True,
    "patience": 4,
    "validate_every": 2,
    "step_search": (0.65, 0.8, 1.25),
    "meta_lr": 3e-4,
    "warmup_steps": 10,
    "schedule": "cosine",
    "scalar_lr_factor": 30.0,
    "loc_coef": 4.0,
    "prompt_coef": 1.0,
    "depth": 20,
    "window_share": 0.06,
    "moments_scope": "lifelong",
    "z_clip": 3.0,
}
