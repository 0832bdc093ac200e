"""MEND: the update is an outer product of pseudo keys and values, no solve (arXiv 2110.11309).

S = -η Σ_tokens k̃ᵀ ṽ over all tokens of prompt and answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from rledit.capture import Tokens
from rledit.editors.hypernetwork_editor import HypernetworkEditor, Rule
from rledit.editors.malmen import MALMENConfig


@dataclass(frozen=True, kw_only=True)
class MENDConfig(MALMENConfig):
    """MEND's settings in the comparison of arXiv 2502.05759."""

    rule: Rule = "outer_product"
    tokens: Tokens = "all"
    rank: int = 1920
    n_blocks: int = 2
    loc_coef: float = 1.0


class MEND(HypernetworkEditor):
    """Editing with transformed rank-one gradients."""

    name = "mend"
    Config = MENDConfig
