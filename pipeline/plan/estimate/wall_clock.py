"""Wall-clock of a grid's cells on so many cores or GPUs: who shares a network waits for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.plan.cells import Cell
from pipeline.plan.cores import usable_cores
from pipeline.plan.estimate import CellEstimate, Estimate, shares_of
from pipeline.plan.estimate.memory import Placement
from pipeline.plan.estimate.needs import network_place
from pipeline.plan.schedule import Work, makespan
from pipeline.plan.training_lengths import shorter_trainings


@dataclass(frozen=True, kw_only=True)
class WallClock:
    """How long the cells take together.

    Attributes:
        seconds: On what there is.
        least: On any number of cores or GPUs: the longest chain of work.
        room: Cores or GPUs there are.
    """

    seconds: float
    least: float
    room: int


def wall_clock(estimate: Estimate, room: int) -> WallClock:
    """The wall-clock of an estimate's cells, as the fleet would work through them.

    Args:
        room: GPUs where the figures are for GPUs, else cores.
    """
    name = unit_of(estimate.placement)
    work = _work(estimate.cells, name, estimate.shares)
    return WallClock(
        seconds=makespan(work, {name: float(room)}), least=makespan(work, {}), room=room
    )


def room_of(
    cells: Sequence[Cell], placement: Placement, gpus: int | None = None, workers: int | None = None
) -> int:
    """The number of GPUs or cores that a wall-clock is for.

    Args:
        gpus: As given; None: as many as a cell takes.
        workers: As given; None: all cores that this process may use.

    Raises:
        ConfigError: The number of the other kind is given, or one cell takes more than there are.
    """
    unit = unit_of(placement)
    given, other = (gpus, workers) if unit == "GPU" else (workers, gpus)
    option, wrong = ("--gpus", "--workers") if unit == "GPU" else ("--workers", "--gpus")
    if other is not None:
        raise ConfigError(
            f"{wrong} {other}: the figures of this grid are for {unit}s; give {option} instead"
            + ("" if unit == "GPU" else ", or give cells a GPU: --set 'resources={gpus: 1}'")
        )
    least = math.ceil(shares_of(cells, placement))
    if given is not None and given < least:
        raise ConfigError(f"{option} {given}: one cell takes {least} {unit}s")
    return given or max(least, 1 if unit == "GPU" else usable_cores())


def unit_of(placement: Placement) -> str:
    """What cells take up: GPUs or cores."""
    return "core" if placement.device.memory_gb is None else "GPU"


def _work(cells: Sequence[CellEstimate], unit: str, shares: float) -> Mapping[str, Work]:
    """Everything there is to do, by key: models, key covariance, networks, cells."""
    work: dict[str, Work] = {}
    demand, one = {unit: shares}, {unit: min(1.0, shares)}
    before = shorter_trainings([found.work.cell for found in cells])
    for number, (found, shorter) in enumerate(zip(cells, before, strict=True)):
        cell = found.work.cell
        model = _model_key(cell)
        network = f"network {network_place(cell)}" if cell.trains else ""
        if found.model:
            work[model] = Work(seconds=found.model, demand=one)
        asked = f"facts {cell.model.name} {cell.dataset.name}"
        if found.asking:
            work[asked] = Work(seconds=found.asking, demand=demand, needs=(model,))
        sums = [f"{_sums_key(found)} {i}" for i in range(cell.statistics.shards)]
        if found.statistics:
            each = Work(seconds=found.statistics / len(sums), demand=demand, needs=(model,))
            work |= dict.fromkeys(sums, each)
        if found.seconds.training:
            training = found.seconds.training
            first = () if shorter is None else (f"network {network_place(shorter)}",)
            work[network] = Work(seconds=training, demand=demand, needs=(model, asked, *first))
        needs = [model, asked, *(sums if "statistics" in cell.needs else ())]
        needs += [network] if cell.trains else []
        work[f"cell {number}"] = Work(seconds=found.own, demand=demand, needs=tuple(needs))
    return work


def _model_key(cell: Cell) -> str:
    return f"model {cell.model.name} {cell.dataset.world}"


def _sums_key(found: CellEstimate) -> str:
    return f"sums {found.work.cell.model.name} {sorted(found.work.covariances)}"
