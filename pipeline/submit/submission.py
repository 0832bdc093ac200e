"""Submissions: a resolved grid, its paths and environment under a readable id, and their record."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.config.gguf_refs import in_wheel
from pipeline.config.grid import Grid
from pipeline.config.parse import parse_grid
from pipeline.config.stored_words import documented
from pipeline.config.yaml_location import Located
from pipeline.inputs.content_hashes import fingerprint
from pipeline.inputs.corpus import REAL_FACTS
from pipeline.storage.object_store import Storage
from pipeline.storage.redaction import names_a_secret, redact
from rledit.errors import UserError

FILE = "submission.json"
_HUB = re.compile(r"[\w.-]+/[\w.-]+@[\w.-]+")
_LONGEST_NAME = 32  # characters of the grid's name in an id; KubeRay allows 47 in all


class SubmitError(UserError, RuntimeError):
    """A grid cannot be submitted as asked; the message says what would work."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A grid on its way to a cluster.

    Attributes:
        name: Readable id: the grid's name, a hash of the grid and its lake, and from the second
            time on a number.
        grid: The resolved grid, as plain JSON.
        lake: URI of the lake, the same place for every node.
        cache: URI of what can be made again, the same place for every node.
        tracking: MLflow URI for the driver; None: the cluster's own ``MLFLOW_TRACKING_URI``.
        replace: Drop finished cells whose settings have changed.
        rerun_other_code: Run finished cells again that other code than the cluster's made.
        session: Ray's name of the cluster's life, by which its jobs are told from another's.
    """

    name: str
    grid: dict[str, Any]
    lake: str
    cache: str
    tracking: str | None = None
    replace: bool = False
    rerun_other_code: bool = False
    session: str = ""

    def parsed(self) -> Grid:
        """The grid."""
        # As data: through YAML, 1e-06 would become text.
        return parse_grid(Located.of_data(self.grid, f"submission {self.name}"))

    def write(self, path: Path) -> None:
        """Write everything as JSON; there is no secret in it."""
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True))

    @classmethod
    def read(cls, path: Path) -> Submission:
        """What `write` wrote."""
        return cls(**json.loads(path.read_text()))


def as_json(grid: Grid) -> dict[str, Any]:
    """A grid as plain JSON, from which `Submission.parsed` makes it again."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(grid)))
    return plain


def base_name(grid: Grid, lake: str) -> str:
    """The id of a first submission: equal for equal grids into the same lake."""
    readable = re.sub(r"[^a-z0-9]+", "-", grid.name.lower()).strip("-")
    if not readable[:1].isalpha():
        readable = f"grid-{readable}"
    content = fingerprint({"grid": as_json(grid), "lake": lake})[:8]
    return f"{readable[:_LONGEST_NAME].strip('-')}-{content}"


def check_run_paths(lake: str, cache: str, tracking: str | None) -> None:
    """Refuse places that are not the same place for every node, or that carry a password.

    Raises:
        SubmitError: Names the option and what it needs.
    """
    places = {"--lake": lake, "--cache": cache}
    if tracking is not None:
        places["--tracking"] = tracking
    for option, uri in places.items():
        if redact(uri) != uri:
            raise SubmitError(
                f"{option} {redact(uri)}: a password or token in a URI would be readable in the "
                "job's description; give it to the nodes' environment instead (AWS_…, PGPASSWORD, "
                "MLFLOW_TRACKING_PASSWORD, or the whole URI as MLFLOW_TRACKING_URI and no "
                "--tracking)"
            )
        reason = _not_shared(uri)
        if reason:
            raise SubmitError(
                f"{option} {uri}: {reason}; on a cluster it must name the same place from every "
                "node, as /mnt/shared/… or s3://bucket/… do"
            )


def check_files(grid: Grid) -> None:
    """Refuse files of the grid that nodes would look for in their own working directories.

    Raises:
        SubmitError: Names the entry and its path.
    """
    for place, path in _files(grid):
        if not path.startswith("/") and "://" not in path:
            raise SubmitError(
                f"{place}: {path!r} is a relative path, and every node has a working directory of "
                "its own; give an absolute path that all nodes see, or a pinned hub name "
                "(owner/name@revision)"
            )


def _files(grid: Grid) -> Iterator[tuple[str, str]]:
    for model in grid.models:
        named = model.checkpoint
        if named is not None and not _HUB.fullmatch(named) and not in_wheel(named):
            yield f"model {model.name}", named
    for dataset in grid.datasets:
        for pool, path in dataset.locations:
            yield f"dataset {dataset.name}, {pool}", path
    if grid.statistics.corpus not in (None, REAL_FACTS):
        yield "covariance, corpus", str(grid.statistics.corpus)
    for name, path in asdict(grid.material).items():
        if isinstance(path, str):
            yield f"eval_data, {documented(name)}", path


def _not_shared(uri: str) -> str | None:
    """Why a URI cannot name the same place from every node, as far as its text tells."""
    scheme, _, rest = uri.partition("://")
    if not rest:
        return None if uri.startswith("/") else "is a relative path"
    if scheme in ("memory", "local"):
        return "lies in one process only"
    if scheme == "file" and not urlsplit(uri).path.startswith("/"):
        return "is not file:/// and an absolute path"
    if scheme.startswith("sqlite") and not rest.startswith("//"):
        return "is a relative path (an absolute one has four slashes, sqlite:////…)"
    return None


FOLDER = "submissions"


def write_record(lake: str, name: str, grid: str, keys: Sequence[str]) -> None:
    """Leave the keys of a submission's cells, for `rledit status`."""
    text = json.dumps({"grid": grid, "cells": list(keys)})
    Storage(lake).write_bytes(f"{FOLDER}/{name}.json", text.encode())


def read_record(lake: str, name: str) -> tuple[str, ...] | None:
    """Keys of a submission's cells; None before its job has planned them."""
    try:
        record = json.loads(Storage(lake).read_bytes(f"{FOLDER}/{name}.json"))
    except FileNotFoundError:
        return None
    return tuple(record["cells"])


def chosen(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The named variables of this process's environment.

    Raises:
        SubmitError: One is not set, or is a secret: Ray shows a job's variables to everyone who
            may list jobs, and writes them to the logs of every node.
    """
    found = {}
    for name in names:
        if name not in environment:
            raise SubmitError(f"--env {name}: there is no such variable here to take along")
        value = environment[name]
        # By its name, a short password is recognised as well as a long one.
        field = f"?{name}={value}"
        if names_a_secret(name) or redact(value) != value or redact(field) != field:
            raise SubmitError(
                f"--env {name}: this is a secret, and Ray shows the variables of a job to everyone "
                "who may list jobs and writes them to logs. Give it to the nodes instead: in the "
                "environment `ray start` sees (cluster.yaml reads ~/.rledit/secrets.env), or as a "
                "Kubernetes secret (--secret)"
            )
        found[name] = value
    return found
