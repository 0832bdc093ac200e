"""MEND: the update is an outer product of pseudo keys and values, no solve (arXiv 2110.11309).

S = -η Σ_tokens k̃ᵀ ṽ over all tokens of prompt and answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rledit.capture import Tokens
from rledit.editors.conventions import Conventions
from rledit.editors.hypernetwork_config import Rule
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.malmen import MALMENConfig


@dataclass(frozen=True, kw_only=True)
class MENDConfig(MALMENConfig):
    """MEND's settings in the comparison of arXiv 2502.05759."""

    rule: Rule = "outer_product"
    tokens: Tokens = "all"

    # Its release, unlike MALMEN's, takes every group's value gradients as they are.
    official: ClassVar[Conventions] = replace(MALMENConfig.official, incomplete_groups="keep")
    published: ClassVar[Mapping[str, Any]] = {"rank": 1920, "n_blocks": 2, "loc_coef": 1.0}


class MEND(HypernetworkEditor):
    """Editing with transformed rank-one gradients."""

    name = "mend"
    checked = {"reference": "test_mend_is_the_textbook_with_an_outer_product"}
    Config = MENDConfig
