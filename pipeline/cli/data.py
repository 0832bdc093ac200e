"""Commands about edits: files of them, and the facts that the package ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def data_check(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files or folders of edits (JSON, JSONL, CSV, Parquet), paths or URIs; a hub's as "
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


def data_facts(
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a model to ask which of the facts it knows; minutes, on a CPU.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Describe the real facts that the package ships: relations, pools, sources.

    With a model, how many of them it knows, and what the pools of locality come to.
    """
    from pipeline.inputs.known_facts import ask_folder
    from rledit.facts import RELATIONS, RealFacts, known_counts, real_facts, table_hash

    facts = real_facts()
    typer.echo(f"{len(facts):,} facts in {len(RELATIONS)} relations, sha256 {table_hash()}")
    known = None if checkpoint is None else ask_folder(checkpoint, typer.echo)
    counts = {} if known is None else known_counts(known)
    for name, relation in RELATIONS.items():
        own = [fact for fact in facts if fact.relation == name]
        answers = len({fact.answer for fact in own})
        says = f", {counts[name][0]} known" if name in counts else ""
        typer.echo(f"  {name:18}{len(own):5} ({answers} answers){says}  {relation.title}")
        typer.echo(f"    {relation.statements[0].format(own[0].named)} {own[0].answer}")
    source = RealFacts(known=known)
    typer.echo("pools: " + ", ".join(f"{pool} {size}" for pool, size in source.sizes().items()))
    for split, why in source.unknowing.items():
        typer.echo(f"  locality of {split}: {why}")
    typer.echo("sources: GeoNames (CC-BY 4.0), CLDR (Unicode licence), mendeleev (MIT); see")
    typer.echo("  SOURCES.md and LICENCES.txt in the folder rledit/facts")
