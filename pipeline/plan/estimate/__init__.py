"""Cost estimate of a grid before it runs: time, memory, disk and downloads.

Times come from like cells of the lake where there are some, else from operations over a stated
rate; memory from the model's shape. Both are estimates: the table says which is which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.config.presets import PRESETS
from pipeline.plan.cells import Cell
from pipeline.plan.estimate.cached import Cached
from pipeline.plan.estimate.matrix_rate import matrix_tflops
from pipeline.plan.estimate.memory import (
    Device,
    OutOfMemory,
    Placement,
    core,
    gpu,
    memory_of,
    out_of_memory,
    placed,
)
from pipeline.plan.estimate.needs import (
    Need,
    absent_files,
    disk_gb,
    file_needs,
    imported_needs,
    model_needs,
    network_place,
    statistics_need,
    unfetched_files,
    unknowable,
)
from pipeline.plan.estimate.past_costs import PastCosts
from pipeline.plan.estimate.prefixes import bytes_at, prefix_needs, store_gb, stream_of
from pipeline.plan.estimate.seconds import (
    Seconds,
    asking_seconds,
    model_seconds,
    modelled,
    statistics_seconds,
)
from pipeline.plan.estimate.workload import Workload, check_modules, workload_of
from pipeline.plan.imported import sums_corpus
from pipeline.plan.prefixes import store_choice
from pipeline.plan.training_lengths import shorter_trainings
from pipeline.results.lake.records import CellRecord


@dataclass(frozen=True, kw_only=True)
class CellEstimate:
    """What one cell costs.

    Attributes:
        seconds: Wall time; set-up that another cell shares is that one's.
        model: Seconds of training its model of the synthetic world, on the first cell with it.
        asking: Seconds of asking its model which real facts it knows, likewise.
        statistics: Seconds of its key covariance, likewise.
        memory_gb: Peak of a rank.
        summed: Its covariances of text that are in the cache, by their names.
        out_of_memory: Why it cannot run where it is to; None where it can.
        trained: Batches that its network is trained on, as the display of the run counts them; 0
            where an earlier cell trains the same one.
    """

    work: Workload
    seconds: Seconds
    trained: int
    model: float
    asking: float
    statistics: float
    memory_gb: float
    summed: frozenset[str]
    out_of_memory: OutOfMemory | None

    @property
    def shared(self) -> float:
        """Seconds of what several cells need, and this one is the first to."""
        return self.model + self.asking + self.statistics

    @property
    def own(self) -> float:
        """Wall seconds without what may be shared: opening, editing and scoring."""
        return self.seconds.total - self.seconds.training

    @property
    def total(self) -> float:
        """Wall seconds."""
        return self.seconds.total + self.shared


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the cells of a grid cost.

    Attributes:
        placement: What each cell is given.
        shares: GPUs (or, without one, cores) that a cell occupies.
        disk: GB by what takes it.
    """

    cells: tuple[CellEstimate, ...]
    placement: Placement
    shares: float
    needs: tuple[Need, ...]
    disk: dict[str, float]

    @property
    def out_of_memory_cells(self) -> tuple[OutOfMemory, ...]:
        """Of the cells that cannot run where they are to run."""
        return tuple(cell.out_of_memory for cell in self.cells if cell.out_of_memory is not None)

    @property
    def hours(self) -> float:
        """GPU-hours, or core-hours without a GPU."""
        return self.shares * sum(cell.total for cell in self.cells) / 3600

    @property
    def ready(self) -> bool:
        """Whether nothing is missing and everything fits."""
        return not self.out_of_memory_cells and not any(need.missing for need in self.needs)


def estimate(
    cells: Sequence[Cell],
    records: Sequence[CellRecord],
    gpu_memory_gb: float = 80.0,
    cache: str | None = None,
    *,
    measured: bool = False,
) -> Estimate:
    """The cost of cells.

    Args:
        cells: Those to run.
        records: Finished cells of the lake, whose costs are carried over to like ones.
        gpu_memory_gb: Memory of the GPUs that cells with GPUs will run on, in GB (1e9 bytes).
        cache: URI of the cache: what lies there is not made again; None: nothing is there.
        measured: See `placement_of`.

    Raises:
        ConfigError: A model's configuration cannot be had, or modules do not exist.
    """
    cached = Cached(cache)
    away = [*absent_files(cells), *unfetched_files(cells)]
    place = placement_of(cells, gpu_memory_gb, measured=measured)
    found = cell_estimates(cells, records, place, cache, away)
    needs = file_needs(cells)
    first: dict[str, Workload] = {}
    for c in found:
        first.setdefault(c.work.cell.model.name, c.work)
    for work in first.values():
        needs += model_needs(work.cell, work.architecture, cached.has_model(work.cell))
    works = [cell.work for cell in found]
    for name in dict.fromkeys(cell.model.name for cell in cells):
        own = [c for c in found if c.work.cell.model.name == name and c.work.documents]
        needs += statistics_need([c.work for c in own], {m for c in own for m in c.summed})
        needs += imported_needs([c for c in cells if c.model.name == name], cache)
        edited = [c.work for c in found if c.work.cell.model.name == name]
        readable = all(not unknowable(work.cell, away) for work in edited)
        needs += prefix_needs(edited, cached if readable else Cached())
    return Estimate(
        cells=tuple(found),
        placement=place,
        shares=shares_of(cells, place),
        needs=tuple(needs),
        disk=disk_gb(works) | {"prefixes": store_gb(works)},
    )


def cell_estimates(
    cells: Sequence[Cell],
    records: Sequence[CellRecord],
    place: Placement,
    cache: str | None = None,
    away: Sequence[str] = (),
) -> list[CellEstimate]:
    """What each cell costs, without what it needs; the arguments are those of `estimate`.

    Args:
        place: See `placement_of`.
        away: Files that cannot be read yet.
    """
    check_modules(cells)
    cached, past = Cached(cache), PastCosts(records)
    known = [not unknowable(cell, away) for cell in cells]
    works = [workload_of(c, readable) for c, readable in zip(cells, known, strict=True)]
    stored = bytes_at(works)
    seen: set[tuple[object, ...]] = set()
    shorter = shorter_trainings(cells)
    return [
        _cell(work, before, place, past, seen, cached if readable else Cached(), stored)
        for work, before, readable in zip(works, shorter, known, strict=True)
    ]


def _cell(
    work: Workload,
    shorter: Cell | None,
    place: Placement,
    past: PastCosts,
    seen: set[tuple[object, ...]],
    cached: Cached,
    stored: Mapping[tuple[str, int], float],
) -> CellEstimate:
    cell, layer = work.cell, work.first_layer
    stream = ("stream", layer, *stream_of(cell))
    asked = stream in seen or cached.has_unedited(cell)
    seen.add(stream)
    kept = store_choice(cell).made
    # A store does not say whose prompts it has: where it is smaller than those of all the grid's
    # streams together, some are lacking.
    whole = stored.get((cell.model.name, layer), 0.0)
    there = kept and not asked and cached.prefix_bytes(cell, layer) >= whole
    seconds = past.seconds(cell) or modelled(
        work, place, stored=kept and (asked or there), asked=asked and not cell.resources.gang
    )
    trained = cell.trained_batches
    if cell.trains:
        network = ("network", *network_place(cell))
        if network in seen or cached.has_network(cell):
            seconds, trained = replace(seconds, setup=0.0, training=0.0), 0
        elif shorter is not None and not cached.has_network(shorter):
            # It goes on where that one ends, unless that one's network is there already.
            left = 1 - shorter.trained_batches / trained
            done = (1 - left) * seconds.training
            trained -= shorter.trained_batches
            seconds = replace(seconds, setup=seconds.setup - done, training=seconds.training - done)
        seen.add(network)
    model, asking, covariance = 0.0, 0.0, 0.0
    world = ("world", cell.model.name, str(cell.dataset.world))
    if world not in seen:
        seen.add(world)
        if not cached.has_model(cell):
            model = model_seconds(cell, work.architecture, place.device)
    facts = ("facts", cell.model.name, cell.dataset.name)
    if cell.dataset.real_facts and facts not in seen:
        seen.add(facts)
        asking = 0.0 if cached.has_known(cell) else asking_seconds(work, place)
    statistics = ("statistics", cell.model.name, *sorted(work.covariances))
    summed = frozenset(
        name for name in work.covariances if work.documents and cached.has_moment(cell, name)
    )
    if sums_corpus(cell) and statistics not in seen:
        seen.add(statistics)
        covariance = statistics_seconds(work, place, work.covariances.keys() - summed)
    memory = memory_of(work, place)
    measured = past.peak_gb(cell)
    return CellEstimate(
        work=work,
        seconds=seconds,
        trained=trained,
        model=model,
        asking=asking,
        statistics=covariance,
        memory_gb=memory.gigabytes if measured is None else measured,
        summed=summed,
        out_of_memory=out_of_memory(work, place, memory),
    )


def placement_of(
    cells: Sequence[Cell], gpu_memory_gb: float = 80.0, *, measured: bool = False
) -> Placement:
    """Where cells run: on GPUs where the grid gives them, or where only GPUs make sense.

    Args:
        cells: The cells.
        gpu_memory_gb: Memory of a GPU.
        measured: Whether cores are taken to be as fast as this machine's, which takes 0.1 s to
            find out.
    """
    first = cells[0] if cells else None
    if first is None:
        return Placement(device=core())
    if not on_gpu(first):
        rate = matrix_tflops() if measured else None
        return placed(first.resources, core(first.threads, rate))
    return placed(first.resources, gpu(gpu_memory_gb))


def on_gpu(cell: Cell) -> bool:
    """Whether figures are stated for a GPU: where the grid gives one, and at full scale but for a
    model that is small enough for a laptop's cores."""
    preset = PRESETS.get(cell.model.preset or "")
    small = preset is not None and preset.for_cpu
    return cell.resources.gpus > 0 or (cell.scale == "full" and not small)


def shares_of(cells: Sequence[Cell], place: Placement) -> float:
    """GPUs, or cores without one, that a cell occupies."""
    if not cells:
        return 0.0
    resources = cells[0].resources
    each = resources.gpus or 1.0
    if place.device.memory_gb is None:
        each = float(resources.cpus or cells[0].threads)
    return each * resources.ranks


__all__ = [
    "CellEstimate",
    "Device",
    "Estimate",
    "absent_files",
    "cell_estimates",
    "estimate",
    "on_gpu",
    "placement_of",
    "shares_of",
    "unfetched_files",
    "unknowable",
]
