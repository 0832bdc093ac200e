"""MLflow as a view of the lake: the runs of a grid, written by one process.

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

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psutil
from mlflow.entities import Metric, Run, RunTag

from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellAddress, CellResult
from pipeline.results.protocol_captions import sorted_protocols
from pipeline.results.tracking.cell_runs import (
    invocation_of,
    is_whole,
    place_at,
    place_of,
    write_cell_run,
)
from pipeline.results.tracking.experiment import Tracked, open_experiment, set_tags
from pipeline.results.tracking.liveness import (
    HEARTBEAT,
    Invocation,
    own_tags,
    process_alive,
    with_start,
)
from pipeline.results.tracking.logged_run import Logged, metric_name
from pipeline.results.tracking.owner import owner_of
from pipeline.results.tracking.presentation import source_tags
from pipeline.results.tracking.saved_views import view_tags
from pipeline.results.tracking.store import explained, hurried, opened, search
from pipeline.results.tracking.uri import TrackingError
from pipeline.storage.redaction import redact

_READERS = 16
_ENDINGS = ("FINISHED", "FAILED", "KILLED")


class Tracker:
    """The one writer of an experiment.

    Args:
        uri: a database (`sqlite:///path.db`, `postgresql://…`) or an MLflow server.
        experiment: the grid's name. Its experiment is called so too, unless another lake has the
            one of that name on this store; then the user's name stands behind it.
        lake: whose cells are logged; None: whichever lake's experiment has the grid's name.
        code: version of the code that runs; cells that it made get the commit it is of.
        known: an experiment of `tracked` to read as it is, where the grid's own is not to be made.

    Raises:
        TrackingError: the URI is a file store, or cannot be opened.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        lake: Lake | None = None,
        code: str = "",
        *,
        known: Tracked | None = None,
    ) -> None:
        self.uri = uri
        self.experiment = experiment
        self._code = code
        self._protocol = ""  # whose scores the views show
        owner = None if lake is None else owner_of(lake)
        with opened(uri) as client:
            self._client = client
            self._experiment_id = (
                open_experiment(client, uri, experiment, owner)
                if known is None
                else known.experiment_id
            )

    def __repr__(self) -> str:
        return f"Tracker({redact(self.uri)!r}, {self.experiment!r})"

    def start(self, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Opens the parent run of one invocation and returns its id.

        Args:
            tags: more tags, e.g. the submission id by which a job's state can be asked.
        """
        own = {"kind": "invocation", "grid": self.experiment, **source_tags(), **own_tags()}
        given = {key: redact(value) for key, value in (tags or {}).items()}
        with explained(self.uri):
            run = self._client.create_run(self._experiment_id, run_name=name, tags=own | given)
        return str(run.info.run_id)

    def beat(self, parent: str, values: Mapping[str, float], step: int) -> None:
        """Says that an invocation is alive and how far it is; one request, which is cut short.

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
        with explained(self.uri), hurried():
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
        with explained(self.uri):
            for run in self._cell_runs(result.address):
                if keep is None and is_whole(run, logged):
                    keep = str(run.info.run_id)
                else:
                    self._client.delete_run(run.info.run_id)
            if not self._protocol:
                self._show(logged.protocols)
            return keep or write_cell_run(
                self._client, self._experiment_id, result, logged,
                invocation=parent, code=self._code,
            )  # fmt: skip

    def finish(self, parent: str, status: str = "FINISHED") -> None:
        """Ends an invocation as FINISHED, FAILED or KILLED."""
        if status not in _ENDINGS:
            raise ValueError(f"a run ends as one of {', '.join(_ENDINGS)}, not {status!r}")
        with explained(self.uri):
            self._client.set_terminated(parent, status=status)

    def close_stale_runs(
        self, is_alive: Callable[[Mapping[str, str]], bool] | None = None
    ) -> list[str]:
        """Ends as KILLED every run left RUNNING by an invocation that is gone; returns their ids.

        Args:
            is_alive: decides by the tags of the parent run (`host`, `pid`, `heartbeat`, and those
                given to `start`); by default `process_alive`.

        Raises:
            TrackingError: the store did not answer.
        """
        alive = is_alive or process_alive
        ended = []
        with explained(self.uri):
            running = self._search("attributes.status = 'RUNNING'")
            parents = [run for run in running if invocation_of(run) is None]
            living = {
                run.info.run_id for run in parents if alive(with_start(run.data.tags, _began(run)))
            }
            for run in running:
                if (invocation_of(run) or run.info.run_id) not in living:
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
        known: dict[tuple[str, ...], list[Run]] = {}
        with explained(self.uri):
            for run in self._search("tags.kind = 'cell'"):
                known.setdefault(place_of(run), []).append(run)
        # After the runs: what another invocation has logged by then is in the lake.
        records = [r for r in lake.manifest(self.experiment) if r.status != "incomplete"]
        with explained(self.uri):
            for place in known.keys() - {place_at(r.address) for r in records}:
                for run in known[place]:
                    self._client.delete_run(run.info.run_id)
        with ThreadPoolExecutor(_READERS) as pool:  # on an object store each read is a round trip
            results = list(pool.map(lake.result, records))
        new = []
        protocols: set[str] = set()
        for result in results:
            runs, logged = known.get(place_at(result.address), []), Logged(result)
            protocols |= logged.protocols
            if len(runs) != 1 or not is_whole(runs[0], logged):
                new.append(result)
        with explained(self.uri):
            self._show(protocols)
        own = self.start("rebuild") if new and parent is None else None
        for result in new:
            self.log_cell(parent or own or "", result)
        if own is not None:
            self.finish(own)
        return len(new)

    def invocations(self) -> list[Invocation]:
        """The parent runs of this experiment, newest first."""
        with explained(self.uri):
            runs = self._search("tags.kind = 'invocation'")
        runs.sort(key=lambda run: -run.info.start_time)
        return [
            Invocation(
                run_id=str(run.info.run_id),
                name=str(run.info.run_name),
                status=str(run.info.status),
                started=_began(run),
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

    def _show(self, protocols: Iterable[str]) -> None:
        """Has the views show the first of these protocols, in the order of tables."""
        for protocol in sorted_protocols(protocols)[:1]:
            set_tags(self._client, self._experiment_id, view_tags(protocol))
            self._protocol = protocol

    def _cell_runs(self, address: CellAddress) -> list[Run]:
        """The runs of a cell at one of its addresses; a grid may have it at several."""
        found = self._search(f"tags.kind = 'cell' and tags.cell = '{address.cell_key}'")
        return [run for run in found if place_of(run) == place_at(address)]

    def _search(self, condition: str) -> list[Run]:
        return search(self._client, self._experiment_id, condition)


def _began(run: Run) -> datetime:
    return datetime.fromtimestamp(run.info.start_time / 1000, UTC)


def _machine() -> dict[str, float]:
    """Load of the machine, under the names by which MLflow shows it as system metrics."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
    }
