"""Commands about clusters: submit, status, cancel; and about tracking:
close-stale-runs, rebuild."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.options import (
    DEFAULT_RESULTS,
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
from pipeline.errors import ConfigError
from pipeline.storage.run_paths import RunPaths

if TYPE_CHECKING:
    from pipeline.submit.ray_cluster import JobServer

Address = Annotated[
    str | None,
    typer.Option(envvar="RLEDIT_ADDRESS", help="The job server, e.g. http://127.0.0.1:8265."),
]
Name = Annotated[str, typer.Argument(help="The submission id.")]
KUBERAY = "KubeRay"


def submit(
    context: typer.Context,
    grid: GridFile,
    lake: Annotated[str, typer.Option(help="URI of the lake, seen alike by every node.")],
    cache: Annotated[str, typer.Option(help="URI of models and resume states, likewise.")],
    tracking: Annotated[
        str | None,
        typer.Option(help="MLflow URI (default: MLFLOW_TRACKING_URI of the head node)."),
    ] = None,
    set_: Sets = [],  # noqa: B006
    scale: Scale = None,
    limit: Limit = None,
    backend: Annotated[
        Literal["ray", "kuberay"], typer.Option(help="Submit to Ray, or print manifests.")
    ] = "ray",
    address: Address = None,
    replace: Replace = False,
    rerun_other_code: RerunOtherCode = False,
    env: Annotated[
        list[str],
        typer.Option(help="Name of a variable to take along (no secrets). May be repeated."),
    ] = [],  # noqa: B006
    include: Annotated[
        list[Path],
        typer.Option(help="More code for the job, e.g. the module of an editor. May be repeated."),
    ] = [],  # noqa: B006
    wait: Annotated[float, typer.Option(help="Seconds to wait for the storage probe.")] = 180.0,
    out: Annotated[
        Path | None, typer.Option(help="File for the manifest.", rich_help_panel=KUBERAY)
    ] = None,
    kind: Annotated[
        Literal["job", "cluster"],
        typer.Option(help="A RayJob, or a standing RayCluster.", rich_help_panel=KUBERAY),
    ] = "job",
    image: Annotated[
        str | None, typer.Option(help="Image with tag.", rich_help_panel=KUBERAY)
    ] = None,
    max_workers: Annotated[
        int, typer.Option(help="Most workers.", min=1, rich_help_panel=KUBERAY)
    ] = 8,
    gpus: Annotated[int, typer.Option(help="GPUs per worker.", min=0, rich_help_panel=KUBERAY)] = 1,
    claim: Annotated[
        str | None,
        typer.Option(help="Volume claim to mount, CLAIM:/path.", rich_help_panel=KUBERAY),
    ] = None,
    secret: Annotated[
        list[str],
        typer.Option(
            help="Variable from a secret, NAME=SECRET/KEY. May be repeated.",
            rich_help_panel=KUBERAY,
        ),
    ] = [],  # noqa: B006
) -> None:
    """Run a grid on a cluster. Submitting it again while it runs says so and starts nothing."""
    from pipeline.config.parse import load_grid
    from pipeline.submit.submission import (
        Submission,
        SubmitError,
        as_json,
        base_name,
        check_files,
        check_run_paths,
        chosen,
    )

    if backend == "ray":
        kuberay = ["out", "kind", "image", "max_workers", "gpus", "claim", "secret"]
        why = "--backend ray has no use for it; add --backend kuberay"
        refuse_without_use(context, kuberay, why)
    else:
        why = "--backend kuberay has no use for it; "
        refuse_without_use(context, ["include"], why + "the image must hold that code")
        refuse_without_use(context, ["wait", "address"], why + "it prints a manifest")
    parsed = load_grid(grid, set_, scale, limit)
    check_run_paths(lake, cache, tracking)
    check_files(parsed)
    environment = chosen(env, os.environ)
    submission = Submission(
        name=base_name(parsed, lake),
        grid=as_json(parsed),
        lake=lake,
        cache=cache,
        tracking=tracking,
        replace=replace,
        rerun_other_code=rerun_other_code,
    )
    if backend == "kuberay":
        from pipeline.submit.manifest import ClusterShape, SecretVariable, render

        if image is None:
            raise SubmitError("--backend kuberay needs --image: one with this project in it")
        shape = ClusterShape(
            image=image,
            max_workers=max_workers,
            gpus=gpus,
            claim=claim,
            secrets=[SecretVariable.parse(text) for text in secret],
            environment=environment,
        )
        text = render(submission, shape, kind)
        if out is not None:
            out.write_text(text)
        typer.echo(f"wrote {out}" if out is not None else text)
        return
    from pipeline.submit.client import await_probe, send

    server = _server(address)
    sent = send(server, submission, environment, include, typer.echo)
    typer.echo(f"submitted {sent.name}")
    job = await_probe(server, sent.name, wait)
    typer.echo(
        f"{job.status}; follow it with: rledit status {sent.name} --address {server.address}"
    )


def status(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A submission id, or a grid's name.")] = None,
    address: Address = None,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            help="MLflow tracking URI (default: with --address the job's own; without, "
            "MLFLOW_TRACKING_URI, else a database in the results folder)."
        ),
    ] = None,
    log: Annotated[int, typer.Option(help="Last lines of the job's log to show.", min=0)] = 0,
) -> None:
    """Show runs and jobs: cells done, running and failed, rates, time left, how to go on.

    Without an address: the grids of a lake with their runs on this machine or elsewhere, running or
    ended, and the runs of a tracking store.
    """
    from pipeline.submit import status as job_status

    if address is None:
        why = "logs are those of a job server; name it with --address"
        refuse_without_use(context, ["log"], why)
        run_paths = RunPaths.under(results, lake, tracking)
        lines = list(job_status.grids_lines(run_paths, name, always_tracked=tracking is not None))
        if name is not None and not lines:
            raise ConfigError(job_status.nothing_line(run_paths, name))
        for line in lines or [job_status.nothing_line(run_paths)]:
            typer.echo(line)
        return
    from pipeline.submit.submission import SubmitError

    why = "a job server is asked (--address, or RLEDIT_ADDRESS is set); give --lake for its jobs'"
    why += " lake, or ask none: unset RLEDIT_ADDRESS"
    refuse_without_use(context, ["results"], why)
    server = _server(address)
    jobs = [job for job in server.jobs() if name in (None, job.name, job.metadata.get("grid"))]
    if name is not None and not jobs:
        raise SubmitError(f"{server.address} knows no submission {name}")
    if not jobs:
        typer.echo(f"{server.address} has no jobs")
    for job in jobs:
        for line in job_status.job_lines(job, lake, tracking):
            typer.echo(line)
        for line in server.log(job.name).splitlines()[-log:] if log else ():
            typer.echo(f"  | {line}")


def cancel(
    name: Name,
    address: Address = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            help="MLflow tracking URI (default: the job's own, else MLFLOW_TRACKING_URI)."
        ),
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for its end.")] = 60.0,
) -> None:
    """End a job; its finished cells stay, and submitting it again goes on from there."""
    from pipeline.submit.status import ended_lines
    from pipeline.submit.submission import SubmitError

    server = _server(address)
    before = server.job(name)
    if before is None:
        raise SubmitError(f"{server.address} knows no submission {name}; rledit status lists them")
    if not before.over:
        server.stop(name)
    job = server.wait(name, lambda job: job.over, wait)
    for line in ended_lines(job, before.over, wait):
        typer.echo(line)
    uri = tracking or job.metadata.get("tracking") or os.environ.get("MLFLOW_TRACKING_URI")
    grid = job.metadata.get("grid")
    if job.over and uri and grid:
        from pipeline.submit.reconcile import close_stale_grids

        for swept in close_stale_grids(uri, [grid], server):
            by = "closed here" if swept.ended else "closed by its driver"
            typer.echo("tracking: " + (str(swept) if swept.left else f"the job's run is {by}"))


def close_stale_runs(
    grids: Annotated[
        list[str] | None, typer.Argument(help="Names of grids (default: all).")
    ] = None,
    address: Address = None,
    results: Results = DEFAULT_RESULTS,
    tracking: TrackingUri = None,
) -> None:
    """End tracked runs that are RUNNING although their process or job is gone."""
    from pipeline.storage.redaction import redact
    from pipeline.submit.reconcile import close_stale_grids

    uri = RunPaths.under(results, None, tracking).tracking
    server = _server(address) if address else None
    lines = [str(swept) for swept in close_stale_grids(uri, grids, server)]
    for line in lines or [f"{redact(uri)}: no tracked run to look at"]:
        typer.echo(line)


def rebuild(
    grids: Annotated[
        list[str] | None, typer.Argument(help="Names of grids (default: all of the lake).")
    ] = None,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    tracking: TrackingUri = None,
) -> None:
    """Make the tracked runs equal to the lake's cells, from nothing if need be."""
    from pipeline.plan.versions import code_version
    from pipeline.results.lake.lake import Lake, LakeError
    from pipeline.results.tracking.tracker import Tracker

    run_paths = RunPaths.under(results, lake, tracking)
    store = Lake(run_paths.lake)
    known = store.grids() if store.exists() else []
    if unknown := sorted(set(grids or ()) - set(known)) or ([] if known else ["any"]):
        there = ", ".join(known) or "none"
        raise LakeError(
            f"no cells of grid {', '.join(unknown)} in {store.storage}; grids there: {there}"
        )
    for grid in grids or known:
        n = Tracker(run_paths.tracking, grid, store, code_version()).rebuild(store)
        typer.echo(f"{grid}: {n} cells logged anew")


def _server(address: str | None) -> JobServer:
    from pipeline.submit.ray_cluster import JobServer
    from pipeline.submit.submission import SubmitError

    if address is None:
        raise SubmitError("give the job server with --address http://… or in RLEDIT_ADDRESS")
    return JobServer(address)
