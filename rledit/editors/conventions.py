"""Where the authors' releases depart from the articles: each departure a named choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rledit.hypernetwork import StepForm
from rledit.moments import Formula
from rledit.reward import KLReference, LocalityGradient

Reference = Literal["paper", "official"]
Clipping = Literal["optimiser_step", "every_batch"]


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """Choices on which the article and the release differ.

    Attributes:
        regularisation_gradient: Whether η_reg‖S‖² is differentiated. The release detaches its
            inputs, so its coefficient has no effect.
        locality_gradient: Weights at which the divergence's gradient is taken. RLEdit's release
            has un-edited them by then.
        clipping: The release clips the accumulated gradient after every batch, so early batches
            vanish; the article's single update calls for one clip at the optimiser step.
        kl_reference: The article compares with the pre-trained model W_0, the release with the
            model before the current batch, W_{t-1}.
        moments: The release's running variance is inflated, and undefined for one-row groups.
        step_form: The release learns the raw step, which may change sign.
        incomplete_groups: The release drops the gradients of a last loss group that is not full.
        sort_by_length: The release sorts each prompt kind by length on its own.
    """

    regularisation_gradient: bool = True
    locality_gradient: LocalityGradient = "edited"
    clipping: Clipping = "optimiser_step"
    kl_reference: KLReference = "pretrained"
    moments: Formula = "exact"
    step_form: StepForm = "log"
    incomplete_groups: Literal["keep", "drop"] = "keep"
    sort_by_length: bool = False


PAPER = Conventions()
OFFICIAL = Conventions(
    regularisation_gradient=False,
    locality_gradient="unedited",
    clipping="every_batch",
    kl_reference="previous",
    moments="official",
    step_form="raw",
    incomplete_groups="drop",
    sort_by_length=True,
)
