"""MEND+RLEdit and MALMEN+RLEdit: their updates, RLEdit's training (arXiv 2502.05759, figure 6).

The network learns from whole trajectories on the changing model, with memory backtracking and as
many optimiser steps per trajectory as RLEdit makes; how its output becomes an update stays the
method's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rledit.editors.conventions import FROM_RECIPE
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.malmen import MALMENConfig
from rledit.editors.mend import MENDConfig


@dataclass(frozen=True, kw_only=True)
class TrajectoryTraining:
    """RLEdit's training, as settings of `HypernetworkConfig`."""

    transition: bool = True
    optimise: Literal["trajectory", "batch"] = FROM_RECIPE
    decay: float = 0.95
    depth: int = FROM_RECIPE
    reg_coef: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class MENDRLEditConfig(TrajectoryTraining, MENDConfig):
    """MEND's update with RLEdit's training."""


@dataclass(frozen=True, kw_only=True)
class MALMENRLEditConfig(TrajectoryTraining, MALMENConfig):
    """MALMEN's update with RLEdit's training."""


class MENDRLEdit(HypernetworkEditor):
    """MEND trained by trajectory reward."""

    name = "mend_rledit"
    checked = {"reference": "test_mend_with_trajectory_training"}
    Config = MENDRLEditConfig


class MALMENRLEdit(HypernetworkEditor):
    """MALMEN trained by trajectory reward."""

    name = "malmen_rledit"
    checked = {"properties": "test_malmen_with_rledits_training_is_rledit"}
    Config = MALMENRLEditConfig
