"""The command that has free answers judged, and the options by which a run does the same."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pipeline.cli.options import DEFAULT_RESULTS, LakeUri, Results
from pipeline.storage.run_paths import RunPaths

if TYPE_CHECKING:
    from pipeline.results.judge.endpoint import Judge
    from pipeline.results.lake.lake import Lake

JudgeUrl = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="Base URL of an OpenAI-compatible endpoint that judges free answers, such as "
        "http://host:8000/v1. Nothing is sent anywhere without it.",
    ),
]
KeyVariable = Annotated[
    str,
    typer.Option(
        "--judge-key-variable",
        help="Name of the environment variable that holds the endpoint's key; not set: no key.",
    ),
]
PerMinute = Annotated[
    float | None,
    typer.Option("--judge-per-minute", help="Most requests a minute.", min=0.01),
]
Parallel = Annotated[
    int, typer.Option("--judge-parallel", help="Requests under way at a time.", min=1, max=256)
]
DEFAULT_KEY_VARIABLE = "RLEDIT_JUDGE_KEY"
_TELL_EVERY = 5.0  # seconds


def judge(
    grid: Annotated[str, typer.Argument(help="Name of the grid, or its file.")],
    url: Annotated[
        str,
        typer.Option(
            "--judge",
            help="Base URL of an OpenAI-compatible endpoint, such as http://host:8000/v1.",
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="The model that judges.")],
    key_variable: KeyVariable = DEFAULT_KEY_VARIABLE,
    per_minute: PerMinute = None,
    parallel: Parallel = 4,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
) -> None:
    """Have the free answers of a grid's finished cells judged by a language model.

    For grids with the protocol wild_judge. What was asked before is not asked again; an
    interrupted command goes on when it is given again.
    """
    from pipeline.results.lake.lake import Lake

    asked = open_judge(url, model, key_variable, per_minute)
    judge_now(Lake(RunPaths.under(results, lake).lake), _name(grid), asked, parallel)


def open_judge(url: str, model: str, key_variable: str, per_minute: float | None) -> Judge:
    """A judge by its options; nothing is sent yet.

    Raises:
        JudgeError: It cannot be asked by these.
    """
    from pipeline.results.judge.endpoint import Judge, open_endpoint

    return Judge(open_endpoint(url, model, key_variable), per_minute)


def judge_now(lake: Lake, grid: str, asked: Judge, parallel: int) -> None:
    """Judge a grid's answers and print what came of it."""
    from pipeline.results.judge.judging import judge_grid

    console = Console(stderr=True)
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= _TELL_EVERY:
            last = time.monotonic()
            console.print(f"judge: {done:,} of {total:,} questions answered", highlight=False)

    found = judge_grid(lake, grid, asked, parallel, tell)
    agreed = (
        "" if found.agreement is None else f"; it agrees with matching on {found.agreement:.1f} %"
    )
    console.print(
        f"judged: {found.answers:,} answers of {found.cells:,} cells by {asked.endpoint}: "
        f"{found.distinct:,} different questions, {found.asked:,} asked now{agreed}; "
        f"{found.unparsable:,} replies say neither right nor wrong and count in no mean",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _name(grid: str) -> str:
    """The name of a grid that is given by it, or by its file."""
    if not grid.endswith((".yaml", ".yml")):
        return grid
    from pipeline.config.parse import load_grid

    return load_grid(Path(grid)).name
