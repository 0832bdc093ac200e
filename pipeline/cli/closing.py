"""Writes the lines that `rledit run` prints before and after its table, with the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.options import DEFAULT_RESULTS
from pipeline.storage.redaction import redact
from pipeline.storage.run_paths import RunPaths

if TYPE_CHECKING:
    from pipeline.plan.cells import Cell
    from pipeline.plan.grid_plan import Plan

_SHOWN_CELLS = 10


def closing_lines(
    grid: str, plan: Plan, run_paths: RunPaths, report: str, given: Mapping[str, str | None]
) -> list[str]:
    """Where everything of a run lies, and the commands that ask for more.

    Args:
        report: Path of the report.
        given: Options that name places, with what was given for them; they belong to every
            command that reads the results.
    """
    lines = [
        f"report: {report}",
        f"lake:   {redact(run_paths.lake)}",
        f"table:  {command(given, 'table', grid)}  (--format latex, md, html or csv)",
        f"MLflow: {_tracking(run_paths.tracking, grid, given)}",
    ]
    cells = _exportable(plan, run_paths)
    if cells:
        export = command(given, "export", "CELL", "FOLDER", cached=True)
        lines.append(f"export: {export}  writes the edited model of a cell:")
        lines += [f"  {key}  {path}" for key, path in cells[:_SHOWN_CELLS]]
        if (more := len(cells) - _SHOWN_CELLS) > 0:
            sql = f"SELECT cell, model, dataset, editor, seed FROM cells WHERE grid = '{grid}'"
            lines.append(f'  and {more} more: {command(given, "query")} "{sql}"')
    return lines


def command(given: Mapping[str, str | None], *words: str, cached: bool = False) -> str:
    """A command of ours that reads the results, as it is typed.

    Args:
        given: Options that name places, with what was given for them, if anything was.
        cached: Whether it reads the cache as well.
    """
    places = {name: value for name, value in given.items() if value is not None}
    if not cached:
        places.pop("--cache", None)
    options = [part for name, value in places.items() for part in (name, redact(value))]
    return shlex.join([program_name(), *words, *options])


def kept_lines(plan: Plan | None, grid: str, run_paths: RunPaths) -> str:
    """What an interrupted run leaves, and the command that goes on from there."""
    from pipeline.plan.cell_keys import key_of
    from pipeline.results.lake.lake import Lake
    from pipeline.run.command_line import command_line
    from pipeline.run.run_file import read_runs

    again = f"go on with: {command_line()}"
    if plan is None:
        return (
            "interrupted while the grid was planned; what is done stays in "
            f"{redact(run_paths.lake)}\n{again}"
        )
    keys = {key_of(cell) for cell in plan.cells}
    lake = Lake(run_paths.lake)
    records = lake.manifest() if lake.exists() else []
    done = sum(record.done and record.address.cell_key in keys for record in records)
    lines = [
        f"interrupted; {done} of {len(keys)} cells are done and kept in {redact(run_paths.lake)}. "
        f"Models, trained networks and saved states are kept in {redact(run_paths.cache)}; what "
        "has saved no state begins again"
    ]
    runs = read_runs(lake.storage, grid) if lake.exists() else []
    for task in runs[0].now.running if runs else ():
        lines.append(f"  under way: {task.label}: {task.position.partition(' at ')[0]}")
    return "\n".join([*lines, again])


def _exportable(plan: Plan, run_paths: RunPaths) -> list[tuple[str, str]]:
    """Key and path of the cells that are done and edit something."""
    from pipeline.plan.cell_keys import key_of
    from pipeline.results.lake.lake import Lake

    done = {r.address.cell_key for r in Lake(run_paths.lake).manifest() if r.done}
    found: dict[str, Cell] = {}
    for cell in plan.cells:
        if cell.editor_name != "none" and key_of(cell) in done:
            found.setdefault(key_of(cell), cell)
    return [(key, cell.path) for key, cell in found.items()]


def _tracking(uri: str, grid: str, given: Mapping[str, str | None]) -> str:
    """The command that opens the tracked runs, and where they are if that is a server."""
    results = given.get("--results")
    places = {"--results": results}
    if uri != RunPaths.under(Path(results or DEFAULT_RESULTS)).tracking:
        places = {"--tracking": uri}
    where = f"  ({redact(uri)})" if uri.startswith(("http://", "https://")) else ""
    return command(places, "mlflow", grid) + where


def program_name() -> str:
    """`rledit` as it was called, a path where the shell does not find it by name."""
    import sys

    from pipeline.run.command_line import command_line

    called = shlex.split(command_line())[0]
    beside = Path(sys.executable).with_name("rledit")
    if Path(called).name == "rledit":
        return called
    if not beside.is_file():
        return "rledit"
    return shlex.split(command_line([sys.executable, str(beside)]))[0]
