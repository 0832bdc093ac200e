"""Submitting to a Ray cluster, once: the id is a lock while the job runs."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.plan.cells import cells_of
from pipeline.submit.manifest import TEMPLATES
from pipeline.submit.package import stage
from pipeline.submit.probe import FAILED, PASSED
from pipeline.submit.ray_cluster import Job, JobServer
from pipeline.submit.submission import FILE, Submission, SubmitError

START = "rledit-start.sh"
_NEEDED = ("ray", "torch", "transformers", "typer", "pydantic", "yaml", "mlflow", "pyarrow")
ENTRYPOINT = f"exec sh {START} {FILE}"


def free_name(server: JobServer, base: str) -> str:
    """The id for a new job: the base name, with a number when jobs of that name have ended.

    Raises:
        SubmitError: The same submission is running; says how to follow it.
    """
    number, name = 1, base
    while (job := server.job(name)) is not None:
        if not job.over:
            raise SubmitError(
                f"{name} is {job.status} already: the same grid into the same lake. Follow it with "
                f"`rledit status {name} --address {server.address}`, or end it with "
                f"`rledit cancel {name} --address {server.address}`"
            )
        number += 1
        name = f"{base}-{number}"
    return name


def send(
    server: JobServer,
    submission: Submission,
    environment: Mapping[str, str],
    include: Sequence[Path],
    tell: Callable[[str], None],
) -> Submission:
    """Upload and start a submission, of whose base name it gets a free one; returns it under that.

    Args:
        include: More files for the job's working directory.
        tell: Takes lines for the user.
    """
    submission = dataclasses.replace(
        submission, name=free_name(server, submission.name), session=server.session()
    )
    with tempfile.TemporaryDirectory(prefix="rledit-submit-") as folder:
        package = stage(submission, Path(folder), include)
        (Path(folder) / START).write_text(start_script(sys.executable, server.ray_version()))
        tell(f"working directory: {package}")
        metadata = {
            "grid": submission.grid["name"],
            "cells": str(len(cells_of(submission.parsed()))),
            "lake": submission.lake,
            "cache": submission.cache,
            "tracking": submission.tracking or "",
        }
        server.submit(submission.name, ENTRYPOINT, Path(folder), environment, metadata)
    return submission


def start_script(submitter: str, ray_version: str = "") -> str:
    """The script that looks for a Python with this project's packages and becomes the driver.

    A job's entry point is a command of the node it starts on, and what `python` means there depends
    on how Ray was started: from an environment that is not on the PATH, it is the system's. Where
    the right one is found by nobody, the job's ``--env RLEDIT_PYTHON`` names it.

    Args:
        submitter: Path of the Python that submits; on a cluster of one machine it is there.
        ray_version: What the cluster runs, which drivers must have too; empty: not known.
    """
    return TEMPLATES.get_template("start.sh.j2").render(
        needed=" ".join(_NEEDED),
        ray=ray_version,
        submitter=shlex.quote(submitter),
    )


def await_probe(server: JobServer, name: str, seconds: float) -> Job:
    """Wait until a job has tried the storage from every node; it may still be PENDING after that.

    Raises:
        SubmitError: A node cannot use the storage; names it.
    """
    text = ""

    def answered(job: Job) -> bool:
        nonlocal text
        text = server.log(name)
        return job.over or PASSED in text or FAILED in text

    job = server.wait(name, answered, seconds)
    failures = [line.strip() for line in text.splitlines() if FAILED in line]
    if failures:
        raise SubmitError("; ".join(failures))
    if job.over and job.status != "SUCCEEDED" and PASSED not in text:
        tail = "\n".join(text.splitlines()[-20:])
        raise SubmitError(f"{name} {job.status}:\n{tail or job.message}")
    return job
