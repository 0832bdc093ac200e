"""Sizes of the whole job, alike for every contender."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rledit.editors.rledit import RLEditConfig
from tests.reference import ReferenceConfig


@dataclass(frozen=True, kw_only=True)
class JobSize:
    """What is edited in a model, and how much.

    Attributes:
        modules: Target modules.
        step: η of RLEdit and of UltraEdit.
        batch_size: Edits per batch.
        train_batches: Batches of the trajectory; the window grows to as many, at most `depth`.
        stream_batches: Batches of the stream.
        depth: Backtracking depth.
        rank, n_blocks: Of the hypernetwork.
        repeats: How often the job is done by each.
    """

    modules: tuple[str, ...]
    step: float = 1e-4
    batch_size: int = 20
    train_batches: int = 10
    stream_batches: int = 10
    depth: int = 10
    rank: int = 256
    n_blocks: int = 2
    repeats: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """RLEdit's settings: one trajectory, one optimiser step, samples in the release's order."""
        return {
            "rank": self.rank,
            "n_blocks": self.n_blocks,
            "initial_step": self.step,
            "depth": self.depth,
            "trajectory_batches": self.train_batches,
            "order": "longest_first",
        }

    @property
    def ours(self) -> RLEditConfig:
        """The library's configuration."""
        return RLEditConfig(modules=self.modules, **self.settings)

    @property
    def reference(self) -> ReferenceConfig:
        """The same for the reference implementation."""
        return ReferenceConfig(
            rank=self.rank, n_blocks=self.n_blocks, initial_step=self.step, depth=self.depth
        )

    @property
    def free_settings(self) -> dict[str, Any]:
        """UltraEdit's settings."""
        return {"step": self.step, "loss_group": 4}


SIZES: Mapping[str, JobSize] = {
    "tiny": JobSize(modules=("gate:1", "up:1"), rank=64, repeats=3),
    "smollm2": JobSize(modules=("gate:20-28", "up:20-28"), train_batches=5),
}
"""Model → the job. SmolLM2's trajectory is short, so that its window never fills: ten batches take
the reference implementation a quarter of an hour."""


@dataclass(frozen=True, kw_only=True)
class ReleaseBenchmark:
    """The whole job on one or both models.

    Attributes:
        configurations: Model → its job.
        model: Folder of SmolLM2-135M; None: the one that the preset `smollm2-135m` has fetched.
        rows: Files of edits to train on and to edit, for SmolLM2.
        pipeline: Whether the pipeline takes part; it needs more than `rledit`.
        reference: Whether the reference implementation does, which takes by far the longest.
        repeats, train_batches, stream_batches, edits: Instead of each job's own; `edits` are those
            of a batch.
    """

    configurations: Mapping[str, JobSize]
    model: Path | None = None
    rows: tuple[Path, Path] | None = None
    pipeline: bool = True
    reference: bool = True
    repeats: int | None = None
    train_batches: int | None = None
    stream_batches: int | None = None
    edits: int | None = None

    def size(self, name: str) -> JobSize:
        """The job on a model."""
        given: dict[str, Any] = {
            "repeats": self.repeats,
            "train_batches": self.train_batches,
            "stream_batches": self.stream_batches,
            "batch_size": self.edits,
        }
        return replace(
            self.configurations[name], **{k: v for k, v in given.items() if v is not None}
        )
