"""`make tables-proxy`: every figure and table of each grid, from its plan.

Nothing is run: the planned cells are given numbers out of thin air, at the points where they would
be scored and measured, and everything is drawn from those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from pipeline.config.grid import Grid
from pipeline.config.parse import load_grid
from pipeline.paper.layouts import LAYOUTS
from pipeline.paper.reference_grids import proxy_streams, reference_grid
from pipeline.paper.table import paper_table
from pipeline.plan.cells import Cell, cells_of
from pipeline.results import figures
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellAddress, CellResult
from pipeline.results.query import connect, runs
from rledit.editors import editor_class
from rledit.measurements.downstream import TASKS
from tests.unit.helpers.turns import marked

ROOT = Path(__file__).parents[4]
MAKEFILE = (ROOT / "Makefile").read_text()
EVERY = {"frontier", "retention", "time", "total_time", "curves"}
# Beyond those, what each grid is there to show; RLEdit's two recipes are variants to compare.
SHOWN = {
    "table2": {"ablation", "composite"},
    "table4": {"ablation", "composite"},
    "table5": {"ablation", "radar", "along", "heat_map", "composite"},
    "fig3": {"ablation", "radar", "along", "heat_map", "abilities"},
    "fig4": {"ablation"},
    "fig5": {"ablation", "radar", "along", "heat_map", "abilities"},
    "fig6": {"composite"},
    "fig7": {"ablation", "radar", "along", "heat_map", "abilities"},
    "fig8": {"ablation", "radar", "batch_sizes"},
    "alphaedit": {"ablation", "abilities", "composite"},
    "gptj": {"ablation", "abilities", "composite"},
    "steps": {"ablation"},
    "protocols": {"ablation", "along", "heat_map", "abilities", "composite"},
}
# Streams per method and dataset, and points of the longest at which everything is scored.
LENGTHS = {"table5": 5, "fig3": 4, "fig5": 2, "fig7": 2, "fig8": 7}
POINTS = {"table5": 5, "fig3": 4, "fig5": 5, "fig7": 5, "protocols": 4}
MOST_EDITS = 100  # the longest stream that the small worlds hold: beyond it all takes longer


def limit() -> int | None:
    """The Makefile's."""
    (found,) = re.findall(r"^LIMIT \?=[ \t]*(\d*)$", MAKEFILE, flags=re.MULTILINE)
    return int(found) if found else None


@lru_cache
def grids() -> dict[str, Grid]:
    """Those that the Makefile runs, as it runs them."""
    (names,) = re.findall(r"^TABLES := (.*)$", MAKEFILE, flags=re.MULTILINE)
    folder = ROOT / "jobs" / "grids"
    return {
        name: load_grid(folder / f"{name}.yaml", (), "standin", limit()) for name in names.split()
    }


def test_the_makefile_runs_every_published_grid() -> None:
    assert set(grids()) == set(SHOWN) == {*LAYOUTS, "protocols"}


@pytest.mark.parametrize("name", SHOWN)
def test_stand_ins_have_the_structure_of_the_published_streams(name: str) -> None:
    """As many, in the same order of length and batch size, equal where those are equal."""
    grid, pairs = grids()[name], proxy_streams(name)
    assert len(pairs) == len(grid.streams) == LENGTHS.get(name, 1)
    by_edits = sorted(pairs, key=lambda s: s[0] * s[1])
    for shorter, longer in pairwise(by_edits):
        equal = shorter[0] * shorter[1] == longer[0] * longer[1]
        a, b = pairs[shorter], pairs[longer]
        assert (a[0] * a[1] == b[0] * b[1]) if equal else (a[0] * a[1] < b[0] * b[1])
        assert (a[1] == b[1]) == (shorter[1] == longer[1])
        assert (a[1] > b[1]) == (shorter[1] > longer[1])
    assert all(n * m <= MOST_EDITS for n, m in pairs.values())
    assert max(len(cell.points) for cell in cells_of(grid)) == POINTS.get(name, 1)


@pytest.mark.parametrize("name", ["fig5", "fig7"])
def test_at_full_scale_every_point_of_a_curve_is_measured_and_no_edit_made_twice(name: str) -> None:
    """An editor that is safe to share runs the longest stream only, past all points of both."""
    layout, planned = LAYOUTS[name](), cells_of(load_grid(reference_grid(name)))
    for method in layout.methods:
        line = (method.editor, method.variant)
        own = [cell for cell in planned if (cell.editor.editor, cell.editor.variant) == line]
        safe = editor_class(str(method.editor)).prefix_safe
        assert len(own) == (1 if safe else 2), method.label
        for section in layout.sections:
            n_batches, batch_size = section.stream
            answering = [c for c in own if n_batches in (c.stream.n_batches, *c.also_after)]
            assert section.edits_at is not None and section.edits_at % batch_size == 0
            points = {0}.union(*(cell.points for cell in answering))
            assert section.edits_at // batch_size in points, section.title


# Three that between them have every kind of figure.
@pytest.mark.parametrize("name", marked(SHOWN, (), ("table5", "fig7", "fig8")))
def test_every_figure_and_every_table_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What would be drawn is of interest here, not how it looks.
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda *_, **__: None)
    grid = grids()[name]
    lake = Lake(str(tmp_path / "lake"))
    for number, cell in enumerate(cells_of(grid)):
        if cell.model.name == grid.models[0].name or name in ("table2", "fig4"):
            lake.commit(made_up(cell, f"{number:016}"))
    connection = connect(lake)
    rows = figures.framed([r for r in runs(connection, name) if r["protocol"] == grid.protocols[0]])
    own = rows[rows["model"] == grid.models[0].name]
    for dataset in (*(entry.name for entry in grid.datasets), None):
        subject = figures.FigureData(
            connection=connection,
            grid=name,
            scale="proxy",
            model=grid.models[0].name,
            dataset=dataset,
            protocol=grid.protocols[0],
            rows=own if dataset is None else own[own["dataset"] == dataset],
            style=figures.styles(rows),
        )  # fmt: skip
        registry = figures.OVERVIEWS if dataset is None else figures.FIGURES
        drawn = {figure for figure, draw in registry.items() if list(draw(subject))}
        assert drawn == {figure for figure in EVERY | SHOWN[name] if figure in registry}
    if name in LAYOUTS:
        assert list(absent(lake, name)) == []


def absent(lake: Lake, name: str) -> Iterator[str]:
    """What a table lacks: a figure of a planned method, or a section of its own."""
    layout = LAYOUTS[name]()
    found = paper_table(lake, name, "proxy")
    read: dict[tuple[Any, ...], str] = {}
    for block in found.blocks:
        section = block.section
        first = section.models[0] == layout.sections[0].models[0]
        for line in block.lines if first else ():
            for figure in line.figures:
                # The unedited model has no time to be compared with.
                if figure.metric.basis == "ratio" and line.method.editor == "none":
                    continue
                if figure.ours.mean is None:
                    yield f"{section.title}, {line.label}, {figure.metric.label}"
        run_paths = {
            (p.stream, p.edits_for(section.edits_at))
            for line in block.lines
            for figure in line.figures
            for p in figure.places
            if p.done
        }
        if first and len(run_paths) != 1:
            yield f"{section.title}: one place, not {run_paths}"
        for place in run_paths:
            own = (section.models, section.datasets, section.metrics, place)
            if own in read:
                yield f"{section.title} shows the figures of {read[own]}"
            read[own] = section.title


def made_up(cell: Cell, key: str) -> CellResult:
    """What a cell would leave in the lake, with numbers that mean nothing."""
    size = cell.stream.batch_size
    scores = dict.fromkeys(("efficacy", "generalization", "specificity", "specificity_self"), 50.0)
    points = [n * size for n in cell.points]
    edited = cell.editor.editor != "none"
    batches = [(i + 1) * size for i in range(cell.stream.n_batches)] if edited else []
    metrics = ["edit_seconds", "shift_norm", "weight_change_norm", "realised_cosine"]
    curves = [(metric, step) for metric in metrics for step in batches]
    curves += [(metric, at) for metric in measured(cell) for at in (0, *points)]
    if "statistics" in cell.needs:
        curves.append(("statistics_seconds", 0))
    return CellResult(
        address=CellAddress(
            cell_key=key,
            grid=cell.grid,
            editor=cell.editor_name,
            variant=cell.editor.variant,
            model=cell.model.name,
            dataset=cell.dataset.name,
            scale=cell.scale,
            seed=cell.seed,
            batch_size=size,
            n_batches=cell.stream.n_batches,
        ),
        identity={"model": {}, "also_after": list(cell.also_after)},
        resolved={},
        data_hash="d",
        code_version="v",
        protocols=cell.protocols,
        edits=[
            {"checkpoint": at, "protocol": protocol, "edit_index": first,
             "batch_index": first // size, "edit_id": str(first), "superseded": False} | scores
            | {"efficacy": 40.0 + first % 7 * 10}  # what is flat is a sentence
            for protocol in cell.protocols
            for at in points
            for first in range(0, at, size)
        ],
        scores=[
            {"checkpoint": at, "n_edits": at, "final": at == cell.n_edits, "protocol": protocol,
             "n_scored": at, "n_superseded": 0} | scores
            for protocol in cell.protocols
            for at in (0, *points)
        ],
        steps=[{"step": step, "metric": metric, "value": 0.5} for metric, step in curves],
        train_seconds=1.0 if cell.trains else 0.0,
        edit_seconds=1.0 if edited else 0.0,
        edit_ms=1000.0 / cell.n_edits if edited else 0.0,
        peak_memory_gb=1.0,
        n_edits=cell.n_edits,
    )  # fmt: skip


def measured(cell: Cell) -> list[str]:
    names = [name for name in cell.measurements if name != "ability"]
    return names + [f"ability_{t}_f1" for t in TASKS if "ability" in cell.measurements]
