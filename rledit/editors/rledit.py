"""RLEdit: the normal-equation hypernetwork trained on whole trajectories (arXiv 2502.05759).

Each training step edits a trajectory of batches, carries the edited weights along, scores every
batch together with the k-1 before it (memory backtracking) and updates the network once.
"""

from __future__ import annotations

from dataclasses import dataclass

from rledit.editors.hypernetwork_config import HypernetworkConfig
from rledit.editors.hypernetwork_editor import HypernetworkEditor


@dataclass(frozen=True, kw_only=True)
class RLEditConfig(HypernetworkConfig):
    """RLEdit's settings; its defaults are those of all hypernetwork methods."""


class RLEdit(HypernetworkEditor):
    """Lifelong editing with a hypernetwork trained by trajectory reward."""

    name = "rledit"
    checked = {"reference": "test_paper_mode_is_the_textbook"}
    Config = RLEditConfig
