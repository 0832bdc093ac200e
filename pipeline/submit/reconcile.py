"""Close tracked runs whose process or job is gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.results.tracking.experiment import tracked
from pipeline.results.tracking.liveness import STALE_MINUTES, process_alive
from pipeline.results.tracking.tracker import Tracker
from pipeline.submit.ray_cluster import JobServer


@dataclass(frozen=True, kw_only=True)
class Swept:
    """How many runs of a grid were closed as KILLED, and how many invocations still run, or may."""

    grid: str
    ended: int
    left: int

    def __str__(self) -> str:
        runs = f"{self.ended} run{'s' * (self.ended > 1)} ended as KILLED"
        rest = (
            f", {self.left} still running or silent for less than {STALE_MINUTES:.0f} min"
            if self.left
            else ""
        )
        return f"{self.grid}: {runs if self.ended else 'no run was left open'}{rest}"


def close_stale_grids(
    uri: str, grids: Sequence[str] | None, server: JobServer | None = None
) -> Iterator[Swept]:
    """End what is RUNNING without anybody running it, grid by grid (None: all) of every lake.

    An invocation that belongs to a job of `server` is judged by the job's state; any other by its
    process where it ran on this machine, else by how long ago it last gave a sign of life.
    """
    session = server.session() if server is not None else None

    def alive(tags: Mapping[str, str]) -> bool:
        name = tags.get("submission_id")
        if server is None or name is None or tags.get("ray_session") != session:
            return process_alive(tags)
        job = server.job(name)
        return job is not None and not job.over

    for known in tracked(uri):
        if grids and not {known.grid, known.name} & {*grids}:
            continue
        tracker = Tracker(uri, known.grid, known=known)
        ended = tracker.close_stale_runs(alive)
        left = [i for i in tracker.invocations() if i.status == "RUNNING"]
        yield Swept(grid=known.name, ended=len(ended), left=len(left))
