"""Prefix stores in an estimate: what each takes, whom it serves, and why other cells keep none."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plan.cells import Cell
from pipeline.plan.estimate.cached import Cached
from pipeline.plan.estimate.memory import GB
from pipeline.plan.estimate.needs import Need
from pipeline.plan.estimate.workload import Workload
from pipeline.plan.prefixes import KINDS, prefix_bytes, store_choice

Stream = tuple[object, ...]


def stream_of(cell: Cell) -> Stream:
    """What cells have in common that ask an unedited model the same, at whatever layer."""
    place = (cell.model.name, cell.dataset.name, cell.dataset.split)
    return (*place, cell.n_edits, cell.scored_edits, cell.seed, cell.protocols, cell.probes)


def prompts_of(work: Workload) -> int:
    """Prompts of a cell's stream: of an edit that is not scored, its own alone."""
    scored = len(work.cell.scored_places)
    return KINDS * scored + work.cell.n_edits - scored


def stream_bytes(work: Workload) -> float:
    """Bytes of the prefixes of a cell's stream."""
    return prefix_bytes(work.cell, work.architecture, prompts_of(work) * work.tokens)


def store_gb(works: Sequence[Workload]) -> float:
    """GB that all prefixes of these cells take, each stream at a layer once."""
    return sum(bytes_at(works).values()) / GB


def bytes_at(works: Sequence[Workload]) -> dict[tuple[str, int], float]:
    """Model and layer → bytes of the prefixes of all streams of these cells there."""
    kept = {(w.first_layer, stream_of(w.cell)): w for w in works if store_choice(w.cell).made}
    found: dict[tuple[str, int], float] = {}
    for work in kept.values():
        place = (work.cell.model.name, work.first_layer)
        found[place] = found.get(place, 0.0) + stream_bytes(work)
    return found


def prefix_needs(works: Sequence[Workload], cached: Cached) -> list[Need]:
    """A line for every store of one model's cells, and for every reason why cells have none."""
    choices = [(work, store_choice(work.cell)) for work in works]
    needs = []
    for layer in sorted({choice.layer for _, choice in choices if choice.made}):
        own = [work for work, choice in choices if choice.made and choice.layer == layer]
        first, editors = own[0], ", ".join(dict.fromkeys(w.cell.label for w in own))
        streams = {stream_of(work.cell): work for work in own}.values()
        prompts, there = sum(map(prompts_of, streams)), cached.prefix_bytes(first.cell, layer)
        text = (
            f"{first.cell.model.name}: prefixes at layer {layer} of {first.architecture.layers} "
            f"kept for all cells of {editors}: {prompts:,} prompts of the streams, "
            f"{sum(map(stream_bytes, streams)) / GB:.2g} GB, and what training draws, up to "
            f"{first.cell.resources.prefix_store_gb:g} GB"
        )
        needs.append(Need(text=text + (f"; {there / GB:.2g} GB are there" if there else "")))
    for reason in dict.fromkeys(c.reason for w, c in choices if w.kind != "none" and not c.made):
        editors = ", ".join(dict.fromkeys(w.cell.label for w, c in choices if c.reason == reason))
        name = works[0].cell.model.name
        needs.append(Need(text=f"{name}: no prefixes are kept for {editors}: {reason}"))
    return needs
