"""Commands about files of edits."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def data_check(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files or folders of edits (JSON, JSONL, Parquet), paths or URIs; a hub's as "
            "hf://datasets/owner/name@revision/file."
        ),
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Make every trap an error, not only broken rows.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="A checkpoint, a folder or owner/name@revision on the hub: look at the rows with "
            "its tokenizer too. No weights are read.",
        ),
    ] = None,
    prompt_style: Annotated[
        Literal["plain", "chat"],
        typer.Option(help="How prompts are put to the model of --model."),
    ] = "plain",
) -> None:
    """Map files to their schema, count rows, duplicates, contradictions and other traps.

    Exit 1 when a row cannot be mapped, or cannot be used with the model's tokenizer.
    """
    from pipeline.inputs.edit_files import open_data
    from rledit.datasets import check_paths

    lines, code = check_paths(paths, strict, open_data)
    for line in lines:
        typer.echo(line)
    if model is not None:
        from pipeline.plan.file_check import model_lines

        lines, usable = model_lines(model, paths, "chat" if prompt_style == "chat" else "bare")
        for line in lines:
            typer.echo(line)
        code = code if usable else 1
    raise typer.Exit(code)
