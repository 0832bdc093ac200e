"""What would make a grid fit: for every editor the options under which its cells do.

Resources are a grid's, and what helps one editor another cannot take. So a remedy names its editors
too, and is a call of its own; the calls fill one table, as a cell is the same in each of them.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import yaml

from pipeline.config import EditorEntry
from pipeline.estimate.device import Placement
from pipeline.estimate.fit import peak_gb, shardable, smallest_fit, widest
from pipeline.estimate.workload import Workload
from pipeline.resources import ResourcesEntry


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Options under which the cells of some editors fit.

    Attributes:
        editors: Whom it helps.
        words: What they run on then.
        resources: The same, as a grid's entry.
        gpu_memory_gb: Memory that their GPUs need, where it is more than those have.
    """

    editors: tuple[EditorEntry, ...]
    words: str
    resources: ResourcesEntry
    gpu_memory_gb: int | None = None

    def options(self, given: ResourcesEntry) -> list[str]:
        """Options to add to `rledit plan`; without the memory, to `rledit run`.

        Args:
            given: The grid's own resources, which need not be said again.
        """
        found = []
        if self.gpu_memory_gb is not None:
            found += ["--gpu-memory-gb", str(self.gpu_memory_gb)]
        if self.resources != given:
            found += ["--set", f"resources={_flow(_unlike_default(self.resources))}"]
        return [*found, "--set", f"editors={_flow([_unlike_default(e) for e in self.editors])}"]

    def line(self, given: ResourcesEntry) -> str:
        """Editors, words and options, which are accepted as they stand."""
        names = ", ".join(e.editor + (f"/{e.variant}" if e.variant else "") for e in self.editors)
        return f"{names}: {self.words}: {shlex.join(self.options(given))}"


def remedies(works: Sequence[Workload], placement: Placement) -> list[Remedy]:
    """One for every way of fitting that an editor of these cells needs; none where all fit."""
    if placement.device.memory_gb is None or not works:
        return []
    own: dict[str, list[Workload]] = {}
    for work in works:
        own.setdefault(work.cell.label, []).append(work)
    if all(_fits(cells, placement) for cells in own.values()):
        return []
    ways: dict[Any, list[list[Workload]]] = {}
    for cells in own.values():
        ways.setdefault(_way(cells, placement), []).append(cells)
    return [_remedy(way, groups, placement) for way, groups in ways.items()]


def remedy_lines(works: Sequence[Workload], placement: Placement) -> list[str]:
    """What would fit, a line for every call."""
    found = remedies(works, placement)
    if not found:
        return []
    resources = works[0].cell.resources
    return [
        "WOULD FIT, each line a call of its own with these options, all for the same table:",
        *(f"  {remedy.line(resources)}" for remedy in found),
    ]


_AS_IT_IS, _LARGER, _LARGER_SHARDED = "as it is", "larger", "larger and sharded"
_LARGEST_GB = 141  # of the GPUs that one can get: what needs more has to be sharded as well


def _way(cells: Sequence[Workload], placement: Placement) -> str | Placement:
    """How an editor's cells would fit: as they are, on a placement, or on larger GPUs."""
    if _fits(cells, placement):
        return _AS_IT_IS
    if (other := smallest_fit(cells, placement)) is not None:
        return other
    whole = peak_gb(cells, placement) <= _LARGEST_GB
    return _LARGER if whole or not all(map(shardable, cells)) else _LARGER_SHARDED


def _remedy(
    way: str | Placement, groups: Sequence[Sequence[Workload]], placement: Placement
) -> Remedy:
    editors = tuple(cells[0].cell.editor for cells in groups)
    every = [work for cells in groups for work in cells]
    given = every[0].cell.resources
    if isinstance(way, Placement):
        return Remedy(editors=editors, words=way.words, resources=_on(way, given))
    if way == _AS_IT_IS:
        words = f"as it is, {placement.words}"
        return Remedy(editors=editors, words=words, resources=_on(placement, given))
    place, words = placement, "no sharding helps, take GPUs of at least {} GB"
    if way == _LARGER_SHARDED:
        place = widest(placement)
        words = (
            f"every rank keeps what no sharding divides, take {place.ranks} GPUs of at least {{}} "
            "GB, smaller batches, or fewer edited layers"
        )
    least = math.ceil(peak_gb(every, place))
    return Remedy(
        editors=editors,
        words=words.format(least),
        resources=_on(place, given),
        gpu_memory_gb=least,
    )


def _fits(cells: Sequence[Workload], placement: Placement) -> bool:
    has = placement.device.memory_gb
    return has is None or peak_gb(cells, placement) <= has


def _on(placement: Placement, given: ResourcesEntry) -> ResourcesEntry:
    """A grid's resources, with what gives its cells a placement on GPUs."""
    return replace(
        given,
        gpus=1.0 if placement.sharded or not given.gpus else given.gpus,
        ranks=placement.ranks,
        sharding="zero3" if placement.sharded else "none",
        offload=placement.offload,
    )


def _unlike_default(entry: EditorEntry | ResourcesEntry) -> dict[str, Any]:
    """An entry as a grid writes it, without what it has anyway."""
    found = {}
    for f in fields(entry):
        value = getattr(entry, f.name)
        if f.default_factory is not MISSING:
            default: Any = f.default_factory()
        else:
            default = f.default
        if value != default:
            whole = isinstance(value, float) and value.is_integer()
            found[f.name] = int(value) if whole else value
    return found


def _flow(value: Any) -> str:
    """YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.strip()
