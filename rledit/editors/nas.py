"""Norm-anchor scaling: AlphaEdit with value vectors at the unedited model's norm (2602.02543).

Value vectors and edited weights amplify each other along a stream. NAS breaks the loop: each target
z is rescaled to the norm that the unedited model shows at the same place, z ← z ‖h_0‖ / ‖z‖.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rledit.editors.alphaedit import AlphaEdit, AlphaEditConfig
from rledit.families import layer_index
from rledit.lazy_torch import Tensor, torch
from rledit.locate.keys import block_values
from rledit.locate.requests import Request
from rledit.locate.value import Values


@dataclass(frozen=True, kw_only=True)
class NASConfig(AlphaEditConfig):
    """NAS's settings, which are AlphaEdit's."""


class NAS(AlphaEdit):
    """AlphaEdit with norm anchors."""

    name = "nas"
    checked = {"properties": "test_nas_anchors_targets_at_the_unedited_norm"}
    Config = NASConfig

    @torch.no_grad()
    def targets(self, requests: Sequence[Request], values: Values) -> Tensor:
        """(edits, hidden) targets at the norm of the unedited values."""
        last = layer_index(self.model.family, self.modules[-1])
        with self.model.weights.unedited():
            anchors = block_values(self.model, requests, last).norm(dim=-1, keepdim=True)
        return values.targets * (anchors / values.targets.norm(dim=-1, keepdim=True))
