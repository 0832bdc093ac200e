"""The experiment of a lake's grid on a tracking store: found, made, and told from other lakes'."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

from pipeline.results.tracking.owner import Owner
from pipeline.results.tracking.presentation import experiment_tags, source_tags
from pipeline.results.tracking.store import opened
from pipeline.results.tracking.uri import TrackingError, checked_uri, sqlite_path
from pipeline.storage.redaction import redact

_MOST_NAMESAKES = 20
_LAKE = "lake"
_GRID = "grid"
_CONFLICT = "RESOURCE_ALREADY_EXISTS"
_BUSY_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """An experiment that holds runs of this project.

    Attributes:
        name: Its own, which no other of the store has.
        grid: The grid whose runs it holds.
        lake: The name of the lake that they are of; empty where an earlier version logged them.
    """

    experiment_id: str
    name: str
    grid: str
    lake: str


def tracked(uri: str) -> list[Tracked]:
    """The experiments of a store that hold runs of this project, by name; changes nothing.

    Raises:
        TrackingError: the store cannot be opened.
    """
    database = sqlite_path(checked_uri(uri))
    if database is not None and not database.is_file():
        return []
    with opened(uri) as client:
        found = [
            _described(experiment)
            for experiment in client.search_experiments()
            if client.search_runs(
                [experiment.experiment_id], "tags.kind = 'invocation'", max_results=1
            )
        ]
    return sorted(found, key=lambda one: one.name)


def bring_home(uri: str) -> None:
    """Names the artifacts beside a database file that was moved or copied as those of its runs.

    Raises:
        TrackingError: the store cannot be opened.
    """
    ours = {one.experiment_id for one in tracked(uri)}
    with opened(uri) as client:
        for known in ours:
            _bring_home(uri, client.get_experiment(known))


def of_lake(found: list[Tracked], grid: str, owner: Owner | None) -> Tracked | None:
    """The experiment of a lake's grid among those of a store; None: it has none there.

    Args:
        owner: The lake; None: whichever has the experiment of the grid's name.
    """
    if owner is None:
        return next((one for one in found if one.name == grid), None)
    own = [one for one in found if one.grid == grid and one.lake in owner.names]
    unnamed = [one for one in found if one.name == grid and not one.lake]
    return next(iter(own + unnamed), None)


def open_experiment(client: MlflowClient, uri: str, grid: str, owner: Owner | None) -> str:
    """Finds or makes the experiment of a lake's grid, brings its pages up to date, returns its id.

    Args:
        owner: The lake; None: whichever lake has the experiment of the grid's name.

    Raises:
        TrackingError: Too many lakes have a grid of this name there.
    """
    user = source_tags().get("mlflow.user", "another user")
    for n in range(1, _MOST_NAMESAKES):
        name = grid if n == 1 else f"{grid} ({user})" if n == 2 else f"{grid} ({user} {n - 1})"
        known = client.get_experiment_by_name(name) or _new(client, uri, name, owner)
        if known is not None and _own(client, uri, known, owner):
            break
    else:
        raise TrackingError(
            f"{redact(uri)}: {_MOST_NAMESAKES} lakes have a grid {grid!r} there; give the grid "
            "another name"
        )
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    _bring_home(uri, known)
    tags = experiment_tags(grid, str(known.experiment_id))
    if owner is not None:
        tags[_LAKE] = owner.name
    set_tags(client, str(known.experiment_id), tags)
    return str(known.experiment_id)


def set_tags(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> None:
    """Writes those tags of an experiment that are not there yet."""
    known = client.get_experiment(experiment_id).tags
    for key, value in tags.items():
        if known.get(key) != value:
            client.set_experiment_tag(experiment_id, key, value)


def _new(client: MlflowClient, uri: str, name: str, owner: Owner | None) -> Experiment | None:
    """Creates an experiment; another process may be first to."""
    home = _home(uri)
    tags = {} if owner is None else {_LAKE: owner.name}
    try:
        client.create_experiment(
            name, artifact_location=None if home is None else home.as_uri(), tags=tags
        )
    except MlflowException as error:
        if error.error_code != _CONFLICT:
            raise
    return client.get_experiment_by_name(name)


def _own(client: MlflowClient, uri: str, experiment: Experiment, owner: Owner | None) -> bool:
    """Whether this lake may write an experiment.

    One from before lakes were told apart is taken over in a database file of the user's own, and
    on a server if it is empty: its runs may be somebody else's. So is the original's in a database
    file that was copied together with the lake.
    """
    if owner is None or experiment.tags.get(_LAKE) == owner.name:
        return True
    if _LAKE in experiment.tags:
        return experiment.tags[_LAKE] in owner.names and not _at_home(uri, experiment)
    return sqlite_path(uri) is not None or not client.search_runs(
        [experiment.experiment_id], max_results=1
    )


def _described(experiment: Experiment) -> Tracked:
    tags: Mapping[str, str] = experiment.tags
    return Tracked(
        experiment_id=str(experiment.experiment_id),
        name=str(experiment.name),
        grid=tags.get(_GRID, str(experiment.name)),
        lake=tags.get(_LAKE, ""),
    )


def _home(uri: str) -> Path | None:
    """The folder of artifacts beside a database file; None: a server says where they lie."""
    database = sqlite_path(uri)
    return None if database is None else database.parent / "artifacts"


def _at_home(uri: str, experiment: Experiment) -> bool:
    """Whether an experiment's artifacts lie beside its database, if that is a file."""
    home = _home(uri)
    return home is None or experiment.artifact_location == home.as_uri()


def _bring_home(uri: str, experiment: Experiment) -> None:
    """After a database file was moved or copied, its artifacts are those beside it.

    MLflow keeps absolute places: without this, a copy would write to the original's folder. Runs
    whose artifacts were not copied with the file keep their place. MLflow has no call for it.
    """
    database, home = sqlite_path(uri), _home(uri)
    if database is None or home is None or _at_home(uri, experiment):
        return
    with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
            (home.as_uri(), int(experiment.experiment_id)),
        )
        runs = connection.execute(
            "SELECT run_uuid, artifact_uri FROM runs WHERE experiment_id = ?",
            (int(experiment.experiment_id),),
        ).fetchall()
        for run, before in runs:
            place = home / run / "artifacts"
            if place.is_dir() or not Path(local_file_uri_to_path(before)).is_dir():
                connection.execute(
                    "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (place.as_uri(), run)
                )
