"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import ConfigError
from pipeline.storage.redaction import redact


def _local_folder(given: Path) -> Path:
    """A folder of this machine, as `--results` needs one.

    Raises:
        ConfigError: It is a URI, of which a path would make a folder called `s3:`.
    """
    if _URI.match(text := str(given)):
        uri = redact(text.replace(":/", "://", 1))  # a path has lost one of the two
        raise ConfigError(
            f"--results {uri}: expected a folder of this machine; what lies elsewhere is given one "
            "by one, by --lake, --cache, --tracking or --out"
        )
    return given


_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
GridFile = Annotated[Path, typer.Argument(help="The grid, e.g. jobs/grids/demo.yaml.")]
Sets = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="Change a setting: KEY.PATH=VALUE, as in seeds=[0,1]; an entry of a list goes by "
        "its name (editors.ft). May be repeated.",
    ),
]
Results = Annotated[
    Path,
    typer.Option(
        envvar="RLEDIT_RESULTS",
        help="Folder of the default lake, the tracking database and the cache.",
        callback=_local_folder,
    ),
]
LakeUri = Annotated[str | None, typer.Option("--lake", help="URI of the lake of results.")]
CacheUri = Annotated[
    str | None,
    typer.Option(
        "--cache",
        help="URI of models, trained networks, key covariance and resume states (default: a folder "
        "in the results folder). On a cluster: a shared mount or an object store.",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, else a "
        "database in the results folder).",
    ),
]
Replace = Annotated[
    bool, typer.Option("--replace", help="Drop finished cells whose settings have changed.")
]
RerunOtherCode = Annotated[
    bool,
    typer.Option(
        "--rerun-other-code",
        help="Run finished cells again that another version of the code made; their rows are "
        "dropped.",
    ),
]
Scale = Annotated[
    str | None,
    typer.Option(
        "--scale",
        help="What the models' presets stand for: full (the published weights and data), proxy "
        "(the same architectures at toy size, on the synthetic world in the datasets' schemas) or "
        "world (its plain form). Default: what the grid says.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Cut every stream to so many batches."),
]
GridName = Annotated[str, typer.Argument(help="Name of the grid, e.g. demo.")]
DEFAULT_RESULTS = Path("results")


def refuse_without_use(context: typer.Context, options: Sequence[str], why: str) -> None:
    """Refuse options of the command line that would be read and change nothing.

    Args:
        context: Of the command.
        options: Names of its parameters.
        why: What has no use for them, and what would.

    Raises:
        ConfigError: Some were given; names them.
    """
    given = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name in options
        and (source := context.get_parameter_source(parameter.name)) is not None
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise ConfigError(f"{', '.join(given)}: {why}")
