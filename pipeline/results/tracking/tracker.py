"""MLflow as a view of the lake; the only file that imports mlflow.

- Experiment = grid of one lake. Its runs lie side by side: one per cell (`kind = 'cell'`), one per
  invocation, which a cell names by the tag `invocation`. The lake is the truth: `Tracker.rebuild`
  recreates the runs from it, and logging the same cell twice changes nothing.
- One process writes, with explicit run ids; workers return rows. The database schema is created
  once, by that process, before anyone else opens it.
- Metrics are named `{metric}_{protocol}` and their step is the number of edits applied, so the
  latest value MLflow shows is the score at the end of the stream. Those of learning curves are
  named `train_{metric}` and `validation_{metric}`, and their step is the training step. A metric
  with one value has step 0: MLflow draws bars of it and no line with one point.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
# It would print the address of every run, with the password that may be in it.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that is away must not hold the driver up for long: the lake has the rows.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import psutil
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from mlflow.utils import get_results_from_paginated_fn

from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellAddress, CellResult
from pipeline.results.tracking.answers_table import ARTIFACT, answers_table
from pipeline.results.tracking.liveness import HEARTBEAT, Invocation, own_tags, process_alive
from pipeline.results.tracking.logged_run import (
    ADDRESS_TAGS,
    Logged,
    address_tags,
    metric_name,
)
from pipeline.results.tracking.owner import lake_id
from pipeline.results.tracking.presentation import (
    COMMIT,
    NOTE,
    cell_note,
    dataset_of,
    experiment_tags,
    source_tags,
)
from pipeline.results.tracking.uri import (
    DEFAULT_URI,
    TrackingError,
    checked_uri,
    quiet_migrations,
    schema_lock,
    sqlite_path,
)
from pipeline.storage.redaction import redact

logger = logging.getLogger(__name__)

_PAGE = 1000
_MOST_NAMESAKES = 20
_READERS = 16

_PARENT = "mlflow.parentRunId"  # of cells as earlier versions logged them
_INVOCATION = "invocation"
_LAKE = "lake"
_CONFLICT = "RESOURCE_ALREADY_EXISTS"
_DIGEST = "content_digest"
_ENDINGS = ("FINISHED", "FAILED", "KILLED")


class Tracker:
    """The one writer of an experiment.

    Args:
        uri: a database (`sqlite:///path.db`, `postgresql://…`) or an MLflow server.
        experiment: the grid's name. Its experiment is called so too, unless another lake has the
            one of that name on this store; then the user's name stands behind it.
        lake: whose cells are logged; None: whichever lake's experiment has the grid's name.
        code: version of the code that runs; cells that it made get the commit it is of.

    Raises:
        TrackingError: the URI is a file store, or cannot be opened.
    """

    def __init__(self, uri: str, experiment: str, lake: Lake | None = None, code: str = "") -> None:
        self.uri = checked_uri(uri)
        self.experiment = experiment
        self._code = code
        self._lake = "" if lake is None else lake_id(lake)
        with quiet_migrations(), schema_lock(self.uri):
            try:
                self._client = MlflowClient(self.uri)
                self._experiment_id = self._open_experiment()
            except MlflowException as error:
                raise TrackingError(
                    f"{redact(self.uri)}: cannot open the tracking store "
                    f"({redact(str(error))}); expected a database such as {DEFAULT_URI}, or the "
                    "address of an MLflow server"
                ) from None

    def __repr__(self) -> str:
        return f"Tracker({redact(self.uri)!r}, {self.experiment!r})"

    def start(self, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Opens the parent run of one invocation and returns its id.

        Args:
            tags: more tags, e.g. the submission id by which a job's state can be asked.
        """
        own = {"kind": "invocation", "grid": self.experiment, **source_tags(), **own_tags()}
        given = {key: redact(value) for key, value in (tags or {}).items()}
        with _explained(self.uri):
            run = self._client.create_run(self._experiment_id, run_name=name, tags=own | given)
        return str(run.info.run_id)

    def beat(self, parent: str, values: Mapping[str, float], step: int) -> None:
        """Says that an invocation is alive and how far it is; one request.

        Args:
            values: numbers by name, shown as metrics of the invocation.
            step: its age in seconds.

        Raises:
            TrackingError: the store did not take it.
        """
        now = datetime.now(UTC)
        moment = int(now.timestamp() * 1000)
        seen = {**values, **_machine()}
        metrics = [Metric(metric_name(k), float(v), moment, step) for k, v in seen.items()]
        with _explained(self.uri):
            self._client.log_batch(
                parent, metrics, tags=[RunTag(HEARTBEAT, now.isoformat(timespec="seconds"))]
            )

    def log_cell(self, parent: str, result: CellResult) -> str:
        """Logs a cell of the invocation `parent` and returns its run id.

        A cell that is logged already, with the same content, keeps its run; with other content its
        run is superseded (deleted in MLflow's sense), because parameters cannot be changed.

        Raises:
            TrackingError: the store did not take it; nothing is lost, `rebuild` adds it later.
        """
        logged = Logged(result)
        keep = None
        with _explained(self.uri):
            for run in self._cell_runs(result.address):
                if keep is None and _complete(run, logged):
                    keep = str(run.info.run_id)
                else:
                    self._client.delete_run(run.info.run_id)
            return keep or self._create(parent, result, logged)

    def finish(self, parent: str, status: str = "FINISHED") -> None:
        """Ends an invocation as FINISHED, FAILED or KILLED."""
        if status not in _ENDINGS:
            raise ValueError(f"a run ends as one of {', '.join(_ENDINGS)}, not {status!r}")
        with _explained(self.uri):
            self._client.set_terminated(parent, status=status)

    def close_stale_runs(
        self, is_alive: Callable[[Mapping[str, str]], bool] | None = None
    ) -> list[str]:
        """Ends as KILLED every run left RUNNING by an invocation that is gone; returns their ids.

        Args:
            is_alive: decides by the tags of the parent run (`host`, `pid`, and those given to
                `start`); by default `process_alive`.

        Raises:
            TrackingError: the store did not answer.
        """
        alive = is_alive or process_alive
        ended = []
        with _explained(self.uri):
            running = self._search("attributes.status = 'RUNNING'")
            parents = [run for run in running if _invocation(run) is None]
            living = {run.info.run_id for run in parents if alive(run.data.tags)}
            for run in running:
                if (_invocation(run) or run.info.run_id) not in living:
                    self._client.set_terminated(run.info.run_id, status="KILLED")
                    ended.append(str(run.info.run_id))
        return ended

    def rebuild(self, lake: Lake, parent: str | None = None) -> int:
        """Makes the runs of cells equal to the lake's cells that are shown under this grid.

        One that another grid has run is logged here as well, with the same values and key.

        Cells that are logged already are left alone, so this is also how a run closes the gap that
        a crash between lake and tracker leaves. Runs of cells that the lake does not have are
        deleted.

        Returns:
            How many cells were logged anew.

        Raises:
            TrackingError: the store did not take it.
        """
        records = [r for r in lake.manifest(self.experiment) if r.status != "incomplete"]
        known: dict[tuple[str, ...], list[Run]] = {}
        with _explained(self.uri):
            for run in self._search("tags.kind = 'cell'"):
                known.setdefault(_tagged(run.data.tags), []).append(run)
            for place in known.keys() - {_tagged(address_tags(r.address)) for r in records}:
                for run in known[place]:
                    self._client.delete_run(run.info.run_id)
        with ThreadPoolExecutor(_READERS) as pool:  # on an object store each read is a round trip
            results = list(pool.map(lake.result, records))
        new = []
        for result in results:
            runs = known.get(_tagged(address_tags(result.address)), [])
            if len(runs) != 1 or not _complete(runs[0], Logged(result)):
                new.append(result)
        opened = self.start("rebuild") if new and parent is None else None
        for result in new:
            self.log_cell(parent or opened or "", result)
        if opened is not None:
            self.finish(opened)
        return len(new)

    def invocations(self) -> list[Invocation]:
        """The parent runs of this experiment, newest first."""
        with _explained(self.uri):
            runs = self._search("tags.kind = 'invocation'")
        runs.sort(key=lambda run: -run.info.start_time)
        return [
            Invocation(
                run_id=str(run.info.run_id),
                name=str(run.info.run_name),
                status=str(run.info.status),
                started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
                tags=dict(run.data.tags),
                metrics=dict(run.data.metrics),
            )
            for run in runs
        ]

    def log_report(self, paths: Iterable[Path], folder: str = "report") -> str:
        """Keeps files (a report, its figures) with the newest invocation; returns its run id.

        Raises:
            TrackingError: there is no invocation, or its files cannot be stored.
        """
        found = self.invocations()
        if not found:
            raise TrackingError(f"{redact(self.uri)}: {self.experiment} has no invocation")
        try:
            for path in paths:
                self._client.log_artifact(found[0].run_id, str(path), folder)
        except Exception as error:  # each kind of store has errors of its own library
            raise TrackingError(
                f"{redact(self.uri)}: the report could not be stored ({redact(str(error))})"
            ) from None
        return found[0].run_id

    def _open_experiment(self) -> str:
        user = source_tags().get("mlflow.user", "another user")
        for n in range(1, _MOST_NAMESAKES):
            name = self.experiment
            if n > 1:
                name += f" ({user})" if n == 2 else f" ({user} {n - 1})"
            known = self._client.get_experiment_by_name(name) or self._new_experiment(name)
            if known is not None and self._own(known):
                break
        else:
            raise TrackingError(
                f"{redact(self.uri)}: {_MOST_NAMESAKES} lakes have a grid {self.experiment!r} "
                "there; give the grid another name"
            )
        if known.lifecycle_stage == "deleted":
            self._client.restore_experiment(known.experiment_id)
        tags = experiment_tags(self.experiment, str(known.experiment_id))
        if self._lake:
            tags[_LAKE] = self._lake
        for key, value in tags.items():
            if known.tags.get(key) != value:
                self._client.set_experiment_tag(known.experiment_id, key, value)
        return str(known.experiment_id)

    def _new_experiment(self, name: str) -> Experiment | None:
        """Creates an experiment; another process may be first to."""
        database = sqlite_path(self.uri)
        artifacts = None if database is None else (database.parent / "artifacts").as_uri()
        tags = {_LAKE: self._lake} if self._lake else {}
        try:
            self._client.create_experiment(name, artifact_location=artifacts, tags=tags)
        except MlflowException as error:
            if error.error_code != _CONFLICT:
                raise
        return self._client.get_experiment_by_name(name)

    def _own(self, experiment: Experiment) -> bool:
        """Whether this lake may write an experiment.

        One from before lakes were told apart is taken over in a database file of the user's own,
        and on a server if it is empty: its runs may be somebody else's.
        """
        if not self._lake or experiment.tags.get(_LAKE) == self._lake:
            return True
        if _LAKE in experiment.tags:
            return False
        return sqlite_path(self.uri) is not None or not self._client.search_runs(
            [experiment.experiment_id], max_results=1
        )

    def _cell_runs(self, address: CellAddress) -> list[Run]:
        """The runs of a cell at one of its addresses; a grid may have it at several."""
        found = self._search(f"tags.kind = 'cell' and tags.cell = '{address.cell_key}'")
        return [run for run in found if _tagged(run.data.tags) == _tagged(address_tags(address))]

    def _search(self, condition: str) -> list[Run]:
        def page(most: int, token: str | None) -> PagedList[Run]:
            return self._client.search_runs(
                [self._experiment_id], condition, ViewType.ACTIVE_ONLY, most, page_token=token
            )

        return list(get_results_from_paginated_fn(page, _PAGE))

    def _create(self, parent: str, result: CellResult, logged: Logged) -> str:
        run = self._client.create_run(
            self._experiment_id,
            start_time=_milliseconds(result.started_at),
            run_name=_run_name(result),
            tags={
                _INVOCATION: parent,
                NOTE: redact(cell_note(result)),
                **self._source(result),
                **logged.tags,
            },
        )
        run_id = str(run.info.run_id)
        if data := dataset_of(result):
            used = [InputTag("mlflow.data.context", "evaluation")]
            self._client.log_inputs(run_id, [DatasetInput(Dataset(**data), used)])
        params = [Param(key, value) for key, value in logged.params.items()]
        moment = _milliseconds(result.finished_at) or run.info.start_time
        metrics = [Metric(key, value, moment, step) for key, value, step in logged.metrics]
        self._client.log_batch(run_id, metrics, params)  # in as many requests as it takes
        self._log_answers(run_id, result)
        # The digest comes last: a run without it is a crash's remainder and is superseded.
        self._client.log_batch(run_id, tags=[RunTag(_DIGEST, logged.digest)])
        ending = "FAILED" if result.status == "failed" else "FINISHED"
        self._client.set_terminated(run_id, ending, _milliseconds(result.finished_at))
        return run_id

    def _source(self, result: CellResult) -> dict[str, str]:
        """Where a cell comes from; the commit only where it was made by the code that runs."""
        tags = source_tags()
        if result.code_version != self._code:
            tags.pop(COMMIT, None)
        return tags

    def _log_answers(self, run_id: str, result: CellResult) -> None:
        """Keep the answers with the run; a store of artifacts that is away costs only a warning."""
        table = answers_table(result)
        if not table:
            return
        try:
            self._client.log_table(run_id, table, ARTIFACT)
        except Exception as error:  # each kind of store has errors of its own library
            logger.warning(
                "%s: the answers of cell %s could not be stored with its run (%s); the lake has "
                "them, and `rledit answers` shows them",
                redact(self.uri), result.address.cell_key, redact(str(error)),
            )  # fmt: skip


def _complete(run: Run, logged: Logged) -> bool:
    """Whether a run has ended and holds just this content."""
    return run.info.status != "RUNNING" and run.data.tags.get(_DIGEST) == logged.digest


def experiments(uri: str) -> list[str]:
    """Names of the experiments of a store that hold runs of this project.

    Raises:
        TrackingError: the store cannot be opened.
    """
    database = sqlite_path(checked_uri(uri))
    if database is not None and not database.is_file():
        return []
    with quiet_migrations(), schema_lock(uri), _explained(uri):
        client = MlflowClient(uri)
        found = client.search_experiments()
        return sorted(
            experiment.name
            for experiment in found
            if client.search_runs(
                [experiment.experiment_id], "tags.kind = 'invocation'", max_results=1
            )
        )


def _invocation(run: Run) -> str | None:
    """The invocation that a cell's run was logged by; None for an invocation."""
    tags = run.data.tags
    return tags.get(_INVOCATION) or tags.get(_PARENT)


def _machine() -> dict[str, float]:
    """Load of the machine, under the names by which MLflow shows it as system metrics."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
    }


def _tagged(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Which cell a run is of, and at which address."""
    return tuple(tags.get(name, "") for name in ADDRESS_TAGS)


def _run_name(result: CellResult) -> str:
    a = result.address
    editor = f"{a.editor}-{a.variant}" if a.variant else a.editor
    return f"{editor} {a.model} {a.dataset} {a.n_batches}x{a.batch_size} seed {a.seed}"


def _milliseconds(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turns MLflow's errors into one that names the store and hides its secrets."""
    try:
        yield
    except MlflowException as error:
        message = f"{redact(uri)}: the tracking store failed ({redact(str(error))})"
        raise TrackingError(message) from None
