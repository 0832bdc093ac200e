"""Where a cell's model lies: what the scheduler has given the cell decides, not what is there."""

from __future__ import annotations

import os

import torch

from pipeline.resources import ResourcesEntry


class NoGpuError(RuntimeError):
    """A cell was given a GPU that PyTorch cannot use."""


def device_of(resources: ResourcesEntry) -> torch.device:
    """The GPU that the scheduler has made visible to this process, or the CPU.

    A cell that was given none leaves the GPUs of its node to those that were.

    Raises:
        NoGpuError: PyTorch sees no GPU although the cell was given one.
    """
    if resources.gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NoGpuError(
            f"the cell was given {resources.gpus:g} GPU per rank, and PyTorch {torch.__version__} "
            "sees none on this node; install a build of PyTorch for its driver, or set "
            "resources.gpus to 0"
        )
    return torch.device("cuda")


def hide_gpus() -> None:
    """Let this process see no GPU; only before it has asked for one, and for its whole life."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
