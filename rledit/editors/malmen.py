"""MALMEN: the same network and normal equation, trained one batch at a time (arXiv 2311.04661).

Every training batch is edited on the unedited model and followed by an optimiser step: the network
never sees a model that carries earlier edits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from rledit.editors.conventions import OFFICIAL, Conventions
from rledit.editors.hypernetwork_config import HypernetworkConfig
from rledit.editors.hypernetwork_editor import HypernetworkEditor


@dataclass(frozen=True, kw_only=True)
class MALMENConfig(HypernetworkConfig):
    """MALMEN's settings: no trajectory, no backtracking, a step per batch."""

    transition: bool = False
    optimise: Literal["trajectory", "batch"] = "batch"
    decay: float = 1.0
    depth: int = 1
    reg_coef: float = 0.0

    # The releases of MALMEN and MEND take the locality gradient at the right weights.
    official: ClassVar[Conventions] = replace(OFFICIAL, locality_gradient="edited")


class MALMEN(HypernetworkEditor):
    """Mass editing with a hypernetwork trained batch by batch."""

    name = "malmen"
    checked = {"reference": "test_malmen_is_the_textbook_batch_by_batch"}
    Config = MALMENConfig
