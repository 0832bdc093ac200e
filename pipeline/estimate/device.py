"""The device that figures are stated for, and what a cell is given of it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.resources import ResourcesEntry

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Device:
    """Sustained rates, not those of a data sheet.

    Attributes:
        name: For the reader.
        memory_gb: Memory in GB (1e9 bytes); None: the host's, which is not checked.
        tflops: Matrix products in the checkpoint's precision, 1e12 operations per second.
        double_tflops: Solves in float64.
        bandwidth_gb: Reads of weights, GB per second.
        gather_gb: Reads of weights that lie on other ranks, GB per second.
        token_budget: Padded tokens of a physical batch, see `rledit.model.Execution`.
    """

    name: str
    memory_gb: float | None
    tflops: float
    double_tflops: float
    bandwidth_gb: float
    gather_gb: float
    token_budget: int


def gpu(memory_gb: float = 80.0) -> Device:
    """A GPU of the A100's class, at 40 % of its peak."""
    return Device(
        name=f"a GPU with {memory_gb:g} GB at 125 TFLOP/s",
        memory_gb=memory_gb,
        tflops=125.0,
        double_tflops=8.0,
        bandwidth_gb=1500.0,
        gather_gb=150.0,
        token_budget=8192,
    )


def core(threads: int = 1) -> Device:
    """Cores of a CPU."""
    return Device(
        name=f"{threads} CPU core{'s' * (threads > 1)} at {0.04 * threads:g} TFLOP/s",
        memory_gb=None,
        tflops=0.04 * threads,
        double_tflops=0.02 * threads,
        bandwidth_gb=10.0,
        gather_gb=1.0,
        token_budget=512,
    )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a cell is given.

    Attributes:
        device: Of every rank.
        ranks: Processes that work on one cell.
        sharded: Whether each holds a slice of the model (ZeRO-3) instead of all of it.
        offload: Whether the slices lie in host memory.
    """

    device: Device
    ranks: int = 1
    sharded: bool = False
    offload: bool = False

    @property
    def words(self) -> str:
        """The `resources` entry, as a grid spells it."""
        if not self.sharded:
            return f"{self.ranks} rank{'s' * (self.ranks > 1)}"
        return f"ZeRO-3 on {self.ranks} GPUs" + (" with offload" if self.offload else "")


def placed(resources: ResourcesEntry, device: Device) -> Placement:
    """A cell's placement by its grid's `resources`."""
    return Placement(
        device=device,
        ranks=resources.ranks,
        sharded=resources.sharding == "zero3",
        offload=resources.offload,
    )
