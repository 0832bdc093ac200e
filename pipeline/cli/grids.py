"""The command that runs a grid on this machine or a cluster."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pipeline.cli.closing import closing_lines, command, kept_lines
from pipeline.cli.judge import (
    DEFAULT_KEY_VARIABLE,
    JudgeUrl,
    KeyVariable,
    Parallel,
    PerMinute,
    judge_now,
    open_judge,
)
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
    TrackingUri,
    refuse_without_use,
)
from pipeline.cli.output import print_table, write_report_files
from pipeline.run.signals import Interrupted
from pipeline.storage.run_paths import RunPaths

if TYPE_CHECKING:
    from pipeline.plan.grid_plan import Plan
    from pipeline.results.judge.endpoint import Judge
    from pipeline.results.lake.lake import Lake

logger = logging.getLogger(__name__)


def run(
    context: typer.Context,
    grid: GridFile,
    set_: Sets = [],  # noqa: B006
    scale: Scale = None,
    limit: Limit = None,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    tracking: TrackingUri = None,
    cache: CacheUri = None,
    workers: Annotated[
        int | None, typer.Option(help="Cores to use (default: all that may be used here).", min=1)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster to run on: auto, host:port or ray://host:port (default: a Ray of "
            "this machine)."
        ),
    ] = None,
    replace: Replace = False,
    rerun_other_code: RerunOtherCode = False,
    judge: JudgeUrl = None,
    judge_model: Annotated[
        str, typer.Option("--judge-model", help="The model that judges, with --judge.")
    ] = "",
    judge_key_variable: KeyVariable = DEFAULT_KEY_VARIABLE,
    judge_per_minute: PerMinute = None,
    judge_parallel: Parallel = 4,
) -> None:
    """Run what is missing of a grid, then print its table and write its report.

    A run that was interrupted goes on from where it stopped: give the same command again.
    """
    from pipeline.config.parse import load_grid
    from pipeline.plan.cell_keys import address_of
    from pipeline.plan.grid_plan import (
        code_lines,
        counts_line,
        make_plan,
        pool_lines,
        shared_lines,
        skip_lines,
    )
    from pipeline.results.lake.lake import Lake
    from pipeline.run.driver import run_plan

    if address is not None:
        why = "--address runs on all cores of that cluster; leave one of both out"
        refuse_without_use(context, ["workers"], why)
    if judge is None:
        judging = ["judge_model", "judge_key_variable", "judge_per_minute", "judge_parallel"]
        refuse_without_use(context, judging, "no judge is asked; give its address with --judge")
    parsed = load_grid(grid, set_, scale, limit)
    asked = None
    if judge is not None:
        asked = open_judge(judge, judge_model, judge_key_variable, judge_per_minute)
    run_paths = RunPaths.under(results, lake, tracking, cache)
    found: Plan | None = None
    console = Console(stderr=True)
    try:
        found = make_plan(parsed, Lake(run_paths.lake), replace, rerun_other_code=rerun_other_code)
        said = [*pool_lines(found.cells), *skip_lines(found.missing)]
        said += [*shared_lines(found), *code_lines(found)]
        for line in said:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print(counts_line(found), highlight=False, markup=False, soft_wrap=True)
        if found.missing:
            from pipeline.plan.preflight import checked

            found, refused = checked(found)
            for line in refused:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
        if asked is not None and any(cell.judged for cell in found.missing):
            _pass_gate(asked, Lake(run_paths.lake), judge_parallel)
        failed = run_plan(parsed, found, run_paths, console, workers, address)
    except Interrupted:
        raise Interrupted(kept_lines(found, parsed.name, run_paths)) from None
    if asked is not None and any(cell.judged for cell in found.cells):
        judge_now(Lake(run_paths.lake), parsed.name, asked, judge_parallel)
    print_table(
        run_paths.lake, parsed.name, "md", among={address_of(cell).scale for cell in found.cells}
    )
    given = {"--results": None if results == DEFAULT_RESULTS else str(results)}
    given |= {"--lake": lake, "--cache": cache}
    _print_words(run_paths.lake, parsed.name, command(given, "answers", parsed.name))
    _print_waiting(Lake(run_paths.lake), parsed.name, given, console)
    page = str(results / f"{parsed.name}.html")
    report_path = write_report_files(run_paths.lake, parsed.name, page)
    _track_report(run_paths, parsed.name, Path(report_path))
    for line in closing_lines(parsed.name, found, run_paths, report_path, given):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.refused:
        n = len(found.refused)
        console.print(f"{n} of {len(found.cells)} cells skipped: see above", highlight=False)
    if failed:
        raise typer.Exit(1)


def _track_report(run_paths: RunPaths, grid: str, report: Path) -> None:
    """Keep the report and its figures with the tracked invocation; a store that is away is no
    error."""
    from pipeline.results.lake.lake import Lake
    from pipeline.results.tracking.tracker import Tracker
    from pipeline.results.tracking.uri import TrackingError

    figures = sorted((report.parent / f"{report.stem}-figures").glob("*.*"))
    try:
        tracker = Tracker(run_paths.tracking, grid, Lake(run_paths.lake))
        tracker.log_report([report])
        if figures:
            tracker.log_report(figures, f"report/{report.stem}-figures")
    except TrackingError as error:
        logger.warning("%s; the report is at %s", error, report)


def _print_words(lake: str, grid: str, more: str) -> None:
    """Ten edits before and after, in words, where the grid's cells have kept answers.

    Args:
        more: The command that shows all of them.
    """
    from pipeline.results.answers_text import ten_edits
    from pipeline.results.query import QueryError

    try:
        words = ten_edits(lake, grid)
    except QueryError:
        return  # `answers.sample` is 0, or all cells are older than answers
    typer.echo(f"\n{words}\n      all of them: {more}\n")


def _pass_gate(asked: Judge, lake: Lake, parallel: int) -> None:
    """Refuse a judge that is none before hours are spent on what it is to judge."""
    from pipeline.results.judge.judging import pass_gate
    from pipeline.results.judge.replies import Replies

    pass_gate(asked, Replies(lake.storage), parallel)


def _print_waiting(
    lake: Lake, grid: str, given: Mapping[str, str | None], console: Console
) -> None:
    """How answers that wait for a judge are judged.

    Args:
        given: Options that name places, see `command`.
    """
    from pipeline.results.judge.judging import waiting

    if n := waiting(lake.manifest(grid)):
        judging = command(given, "judge", grid, "--judge", "URL", "--model", "MODEL")
        console.print(
            f"judge:  the answers of {n} cells are not judged yet: {judging}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
