"""The command that takes an edited model out of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.editing import Form, ModelNow, Rank, export_ledger
from pipeline.cli.options import (
    DEFAULT_RESULTS,
    CacheUri,
    LakeUri,
    Results,
    refuse_without_use,
)
from pipeline.storage.run_paths import RunPaths


def export(
    context: typer.Context,
    cell: Annotated[
        str,
        typer.Argument(
            metavar="CELL|LEDGER",
            help="Key of a done cell, or its beginning; or the folder of a ledger.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    delta: Annotated[bool, typer.Option("--delta", help="The same as --form delta.")] = False,
    form: Annotated[
        Form,
        typer.Option(
            "--form",
            help="A whole checkpoint, only the change of the edited matrices (exact), or a LoRA "
            "adapter.",
        ),
    ] = Form.checkpoint,
    rank: Rank = None,
    model: ModelNow = None,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    cache: CacheUri = None,
) -> None:
    """Write the edited model of a cell, or of a ledger, as a Hugging Face checkpoint.

    Without `keep_edited: true` in its grid, the cell is run again first, and has to score as it
    did.
    """
    chosen = Form.delta if delta else form
    if chosen is not form:
        refuse_without_use(context, ["form"], "--delta says the form; leave one of the two out")
    if chosen is not Form.lora:
        refuse_without_use(context, ["rank"], "only an adapter has a rank; take --form lora")
    if (Path(cell) / "ledger.json").is_file():
        why = "a ledger has its batches in its own folder, and no results; leave it out"
        refuse_without_use(context, ["results", "lake", "cache"], why)
        export_ledger(Path(cell), folder, chosen, rank, model)
        return
    refuse_without_use(context, ["model"], "a cell's model is its grid's; it is for a LEDGER")
    from pipeline.run.export import export as write

    places = RunPaths.under(results, lake, cache=cache)
    typer.echo(write(cell, places, folder, form=chosen.value, rank=rank))
