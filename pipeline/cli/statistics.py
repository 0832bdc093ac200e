"""Commands about key covariance in the form that releases publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import DEFAULT_RESULTS, CacheUri, GridFile, Results, Scale, Sets
from pipeline.storage.run_paths import RunPaths


def statistics_import(
    file: Annotated[
        Path,
        typer.Argument(
            help="A .npz of the ROME family (mom2.mom2, mom2.count) or of CrispEdit (A, B, N), or "
            "a .pt of null-space projections.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", help="The model it is of: a preset's name, or a checkpoint as in a grid."
        ),
    ],
    module: Annotated[
        list[str],
        typer.Option(
            "--module",
            help="The linear it is of, e.g. down:4 or model.layers.4.mlp.down_proj; of a .pt all "
            "of them, in the order of its layers: down:4-8.",
        ),
    ],
    dtype: Annotated[
        str | None, typer.Option(help="Precision of the model, where a grid names another.")
    ] = None,
    corpus: Annotated[
        str,
        typer.Option(
            help="Text like that which the file was made from, as covariance.corpus of a grid; "
            "200 documents of it are used."
        ),
    ] = "real_facts",
    results: Results = DEFAULT_RESULTS,
    cache: CacheUri = None,
) -> None:
    """Verify a published key covariance, or projections, against its model; grids may then use it.

    A file that does not fit the model and the linear is refused, with the numbers that failed.
    """
    from pipeline.run.cache import Cache
    from pipeline.run.import_statistics import import_statistics

    place = Cache(RunPaths.under(results, cache=cache).cache)
    taken = import_statistics(file, model, module, place, dtype, corpus)
    for entry in taken:
        typer.echo(f"{entry.linear}: verified")
        for check in entry.checks:
            typer.echo(f"  {check}")
    name = Path(model).name.partition("@")[0]
    typer.echo("In a grid, under the model's name there:\n")
    typer.echo(f"covariance:\n  {taken[0].kind}:\n    {name}:")
    for entry in taken:
        typer.echo(f"      {entry.linear}: {_quoted(entry.file_hash)}")


def _quoted(text: str) -> str:
    """As YAML: a hash of digits alone would be a number."""
    return f'"{text}"'


def statistics_export(
    grid: GridFile,
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    set_: Sets = [],  # noqa: B006
    scale: Scale = None,
    results: Results = DEFAULT_RESULTS,
    cache: CacheUri = None,
) -> None:
    """Write the key covariance that a grid's runs have computed as the ROME family's .npz files."""
    from pipeline.config.parse import load_grid
    from pipeline.plan.cells import cells_of
    from pipeline.run.cache import Cache
    from pipeline.run.shared_covariance import export_published

    place = Cache(RunPaths.under(results, cache=cache).cache)
    for path in export_published(cells_of(load_grid(grid, set_, scale)), place, folder):
        typer.echo(path)
