"""The command that shows what edited models say, in words."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from pipeline.cli.options import DEFAULT_RESULTS, GridName, LakeUri, Results
from pipeline.storage.run_paths import RunPaths


class Probe(StrEnum):
    """Kinds of prompts that can be shown, see `rledit.written_answers.KINDS` (slow to import)."""

    edit = "edit"
    rephrase = "rephrase"
    locality = "locality"
    portability = "portability"
    all = "all"


def answers(
    name: GridName,
    editor: Annotated[
        list[str],
        typer.Option("--editor", help="Show this method, as NAME or NAME/VARIANT. Repeatable."),
    ] = [],  # noqa: B006
    model: Annotated[list[str], typer.Option("--model", help="Show this model. Repeatable.")] = [],  # noqa: B006
    dataset: Annotated[
        list[str], typer.Option("--dataset", help="Show this dataset. Repeatable.")
    ] = [],  # noqa: B006
    probe: Annotated[
        Probe, typer.Option("--probe", help="Which prompts of an edit to show.")
    ] = Probe.edit,
    where: Annotated[
        str,
        typer.Option(
            "--where",
            help='An SQL condition on the view answers, e.g. "seed = 1 AND NOT has_target".',
        ),
    ] = "",
    n: Annotated[int, typer.Option("-n", min=1, help="Edits shown, spread over those asked.")] = 10,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
) -> None:
    """Show what the models of a grid say before and after their edits, in words.

    Shown is the end of the longest stream with its first seed; --where chooses others. How many
    edits are asked says the grid's key `answers`.
    """
    from pipeline.results.answers_text import render_answers
    from pipeline.results.find_answers import find_answers

    found = find_answers(
        RunPaths.under(results, lake).lake,
        name,
        editors=editor,
        models=model,
        datasets=dataset,
        probes=[] if probe is Probe.all else [probe.value],
        where=where,
        n=n,
    )
    typer.echo(render_answers(found))
