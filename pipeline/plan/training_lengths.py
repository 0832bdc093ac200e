"""Trainings that differ in their length alone: each longer one goes on where a shorter one ends.

A training whose learning rate does not depend on its length, and which no validation ends, begins
as a shorter one of the same settings does, bit by bit. A grid that asks what more steps buy
therefore trains as many steps as its longest training has, not the sum of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from pipeline.plan.cells import Cell
from pipeline.plan.prefixes import training_store_choice


def shorter_trainings(cells: Sequence[Cell]) -> list[Cell | None]:
    """For each cell one whose training its own goes on from: the next shorter one; None without.

    Args:
        cells: Of one grid: its models and data sets go by their names, and no data is read.

    Raises:
        ConfigError: The configuration of a model cannot be had.
    """
    families = [_family(cell) for cell in cells]
    lengths: dict[str, dict[int, Cell]] = {}
    for cell, family in zip(cells, families, strict=True):
        if family is not None:
            lengths.setdefault(family, {}).setdefault(cell.settings.train_steps, cell)
    before = {
        (family, longer): known[shorter]
        for family, known in lengths.items()
        for shorter, longer in pairwise(sorted(known))
    }
    return [
        None if family is None else before.get((family, cell.settings.train_steps))
        for cell, family in zip(cells, families, strict=True)
    ]


def _family(cell: Cell) -> str | None:
    """What trainings have in common of which a longer one begins as a shorter one; None of others.

    An editor from outside may look at the number of steps in ways that are not known here.
    """
    settings: Any = cell.settings
    steady = getattr(settings, "schedule", None) == "constant" and cell.stopping is None
    if not cell.trains or not steady or ":" in cell.editor.editor:
        return None
    alike = (
        cell.model.name,
        cell.dataset.name,
        cell.editor_name,
        replace(settings, train_steps=1),
        cell.training_seed,
        (cell.trajectory_batches, cell.stream.batch_size, cell.threads),
        cell.resources,
        # Where a short one keeps no prefixes, and a long one does, last bits differ.
        training_store_choice(cell).made,
    )
    return repr(alike)
