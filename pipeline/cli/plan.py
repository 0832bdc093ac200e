"""The command that tells what a grid needs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    DEFAULT_RESULTS,
    CacheUri,
    GridFile,
    LakeUri,
    Limit,
    Replace,
    RerunOtherCode,
    Results,
    Scale,
    Sets,
)
from pipeline.storage.redaction import redact
from pipeline.storage.run_paths import RunPaths

if TYPE_CHECKING:
    from pipeline.results.lake.lake import Lake
    from pipeline.results.lake.records import CellRecord


def plan(
    grid: GridFile,
    set_: Sets = [],  # noqa: B006
    scale: Scale = None,
    limit: Limit = None,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    cache: CacheUri = None,
    gpu_memory_gb: Annotated[
        float, typer.Option(help="Memory of the GPUs the grid will run on, in GB.", min=1)
    ] = 80.0,
    gpus: Annotated[
        int | None,
        typer.Option(
            help="GPUs there will be, for the wall-clock (default: as many as one cell takes).",
            min=1,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Cores there will be, for the wall-clock (default: all that may be used here).",
            min=1,
        ),
    ] = None,
    cells: Annotated[
        bool, typer.Option("--cells/--no-cells", help="List every cell with its state.")
    ] = True,
    replace: Replace = False,
    rerun_other_code: RerunOtherCode = False,
) -> None:
    """Tell what a grid needs: cells done and missing, hours, memory, disk, downloads. Runs nothing.

    What lies in the cache (models, trained networks, key covariance) is not reckoned again.

    Exit 1 when something is missing, or a cell does not fit on its GPUs.
    """
    from pipeline.config.parse import load_grid
    from pipeline.plan.cell_keys import key_of
    from pipeline.plan.cells import cells_of
    from pipeline.plan.checks import check_sharded, skip_reason
    from pipeline.plan.estimate import (
        absent_files,
        estimate,
        placement_of,
        unfetched_files,
        unknowable,
    )
    from pipeline.plan.estimate.judge import judge_lines
    from pipeline.plan.estimate.summary import assumption_line, summary
    from pipeline.plan.estimate.wall_clock import room_of
    from pipeline.plan.grid_plan import (
        code_lines,
        double_lines,
        failed_lines,
        make_plan,
        pool_lines,
        shared_lines,
        skip_lines,
    )
    from pipeline.results.judge.judging import waiting
    from pipeline.results.lake.lake import Lake

    parsed = load_grid(grid, set_, scale, limit)
    run_paths = RunPaths.under(results, lake, cache=cache)
    store = Lake(run_paths.lake)
    every = cells_of(parsed)
    absent = absent_files(every)
    away = [*absent, *unfetched_files(every)]  # fetching is for the run
    known = [cell for cell in every if not unknowable(cell, away)]
    unknown = [cell for cell in every if unknowable(cell, away)]
    for cell in unknown:
        check_sharded(cell)
    found = make_plan(parsed, store, replace, known, rerun_other_code)
    skipped = {key_of(cell) for cell in found.missing if skip_reason(cell) is not None}
    to_run = [cell for cell in found.missing if key_of(cell) not in skipped] + unknown
    if to_run:
        place = placement_of(to_run, gpu_memory_gb, measured=True)
        room = room_of(to_run, place, gpus, workers)
        typer.echo(assumption_line(place, room))
    states = {True: "done", False: "missing"}
    for cell in found.cells if cells else ():
        state = "skipped" if key_of(cell) in skipped else states[key_of(cell) in found.done]
        reason = skip_reason(cell) if key_of(cell) in skipped else found.failed.get(key_of(cell))
        typer.echo(f"{state:8}{key_of(cell)}  {cell.path}" + (f"  ({reason})" if reason else ""))
    for cell in unknown if cells else ():
        reason = "not there" if unknowable(cell, absent) else "not fetched"
        typer.echo(f"{'missing':8}{'-' * 16}  {cell.path}  (its data is {reason})")
    reasons = () if cells else (*skip_lines(found.missing), *failed_lines(found))
    shared = (*shared_lines(found), *double_lines(found, store))
    for line in (*pool_lines(found.cells), *reasons, *shared, *code_lines(found)):
        typer.echo(line)
    done = Counter((c.model.name, c.label) for c in found.cells if key_of(c) in found.done)
    cost = estimate(to_run, _records(store), gpu_memory_gb, run_paths.cache, measured=True)
    for line in summary(cost, done, room if to_run else 1):
        typer.echo(line)
    for line in judge_lines(to_run, unknown):
        typer.echo(line)
    if n := waiting(store.manifest(parsed.name) if store.exists() else []):
        typer.echo(f"judge: the answers of {n} finished cells are not judged yet")
    counts = f"{len(every)} cells, {len(to_run)} to run"
    left = f", {len(skipped)} skipped" if skipped else ""
    typer.echo(f"{counts}{left}; lake {redact(run_paths.lake)}")
    if not cost.ready:
        raise typer.Exit(1)


def _records(store: Lake) -> list[CellRecord]:
    """What the lake's cells cost; nothing where there is no lake yet."""
    return store.manifest() if store.exists() else []
