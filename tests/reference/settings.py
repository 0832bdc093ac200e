"""The settings of the dense implementation; their defaults are those of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """Settings of the dense implementation.

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
        step_form: ``raw`` learns η itself, ``log`` learns s with η = η_0 exp(s).
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
    step_form: Literal["log", "raw"] = "raw"
    rule: Literal["normal_equation", "outer_product"] = "normal_equation"
    tokens: Literal["answer", "all"] = "answer"
    gradient: Literal["explicit", "autograd"] = "explicit"
