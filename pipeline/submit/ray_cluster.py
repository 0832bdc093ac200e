"""Ray's job server, and something to be done on every node: what submitting needs to know of Ray.

Clients authenticate as Ray does: `RAY_AUTH_MODE=token` and a token in `~/.ray/auth_token`, in the
file `RAY_AUTH_TOKEN_PATH`, or in `RAY_AUTH_TOKEN`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.run.signals import handler_kept
from pipeline.storage.redaction import redact
from pipeline.submit.submission import SubmitError

POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the server knows it, by its submission id; times are None before they come."""

    name: str
    status: str
    message: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether it has ended, however."""
        return JobStatus(self.status).is_terminal()


class JobServer:
    """The job server of a Ray cluster.

    Args:
        address: ``http://host:port`` of its dashboard.

    Raises:
        SubmitError: It cannot be reached, or does not accept the token.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise SubmitError(
                f"--address {redact(address)}: expected the job server's http://host:port, usually "
                "http://127.0.0.1:8265 through a tunnel (ray dashboard cluster.yaml)"
            )
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
        self.address = address
        self._client = self._ask(lambda: JobSubmissionClient(address))

    def session(self) -> str:
        """Ray's name of the cluster's life: another one after a restart."""
        return self._version("session_name")

    def ray_version(self) -> str:
        """The version of Ray that the cluster runs; empty where it does not say."""
        return self._version("ray_version")

    def _version(self, key: str) -> str:
        answer = self._ask(lambda: self._client._do_request("GET", "/api/version"))
        return str(answer.json().get(key, ""))

    def submit(
        self,
        name: str,
        entrypoint: str,
        folder: Path,
        environment: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> None:
        """Start a job.

        Args:
            name: Its submission id.
            folder: Its working directory, uploaded.
            environment: Variables of the driver and of all its workers. Ray shows them to everyone
                who may list jobs, and writes them to logs.
            metadata: Shown with the job.

        Raises:
            SubmitError: There has been a job of this name, or the server refuses it.
        """
        runtime = {"working_dir": str(folder), "env_vars": dict(environment)}
        try:
            self._reach(
                lambda: self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=name,
                    runtime_env=runtime,
                    metadata=dict(metadata),
                )
            )
        except _Refused as error:
            if "already exists" in str(error):
                raise SubmitError(
                    f"{name} has been submitted by somebody else just now; follow it with "
                    f"`rledit status {name} --address {self.address}`"
                ) from None
            hint = (
                "; the head's agent did not start, mostly because another Ray of this machine, "
                "such as that of a `rledit run`, holds its port: wait until that has ended, or "
                "start the head with --dashboard-agent-listen-port and a free port"
                if "No available agent" in str(error)
                else ""
            )
            raise SubmitError(f"{self.address} refuses {name}: {_last_line(error)}{hint}") from None

    def job(self, name: str) -> Job | None:
        """A job by its submission id, None if there is none."""
        try:
            return _job(self._reach(lambda: self._client.get_job_info(name)))
        except _Refused as error:
            if "does not exist" in str(error):
                return None
            raise SubmitError(f"{self.address}: {_last_line(error)}") from None

    def jobs(self) -> list[Job]:
        """All submitted jobs, newest first."""
        details = [d for d in self._ask(self._client.list_jobs) if d.submission_id]
        return [_job(d) for d in sorted(details, key=lambda d: -(d.start_time or 0))]

    def stop(self, name: str) -> None:
        """Ask a job to end; its driver has a few seconds to do so in order."""
        self._ask(lambda: self._client.stop_job(name))

    def log(self, name: str) -> str:
        """What the job's driver has written so far."""
        return str(self._ask(lambda: self._client.get_job_logs(name)))

    def wait(self, name: str, until: Callable[[Job], bool], seconds: float) -> Job:
        """Wait until something holds for a job, or the time is over; returns its last state."""
        deadline = time.monotonic() + seconds
        while True:
            job = self.job(name)
            if job is None:
                raise SubmitError(f"{self.address} knows no job {name}; rledit status lists them")
            if until(job) or time.monotonic() > deadline:
                return job
            time.sleep(POLL_SECONDS)

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return self._reach(question)
        except _Refused as error:
            raise SubmitError(f"{self.address}: {_last_line(error)}") from None

    def _reach(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except AuthenticationError:
            raise SubmitError(
                f"{self.address} does not accept this client: set RAY_AUTH_MODE=token and give the "
                "cluster's token in ~/.ray/auth_token or the file RAY_AUTH_TOKEN_PATH"
            ) from None
        except OSError as error:  # a connection that fails later is no ConnectionError
            raise SubmitError(
                f"no job server at {self.address} ({_last_line(error)}); is the cluster up, and "
                "the tunnel to it (ray dashboard cluster.yaml)?"
            ) from None
        except RuntimeError as error:
            raise _Refused(str(error)) from None


class _Refused(Exception):
    """The server's answer is an error."""


def on_every_node(
    work: Callable[[str], list[str]], address: str, seconds: float
) -> dict[str, list[str]]:
    """Call a function once on every node of a cluster, all at the same time.

    Args:
        work: Takes the node's name and returns what is wrong there.
        address: The cluster; ``auto`` inside a job.
        seconds: Until a node that does not answer is given up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported home
    with handler_kept(block=True):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        nodes = {_node_name(node): node["NodeID"] for node in ray.nodes() if node["Alive"]}
        answers = {
            name: _call.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(work, name)
            for name, node in nodes.items()
        }
        ray.wait(list(answers.values()), num_returns=len(answers), timeout=seconds)
        return {name: _answer(reference, seconds) for name, reference in answers.items()}
    finally:
        ray.shutdown()


@ray.remote(num_cpus=0, max_retries=0)
def _call(work: Callable[[str], list[str]], node: str) -> list[str]:
    return work(node)


def _answer(reference: Any, waited: float) -> list[str]:
    try:
        return list(ray.get(reference, timeout=0))
    except GetTimeoutError:
        return [f"did not answer within {waited:.0f} s"]
    except RayError as error:
        return [f"{type(error).__name__}: {_last_line(error)}"]


def _node_name(node: Mapping[str, Any]) -> str:
    """Readable, and unique even where several nodes share a machine."""
    return f"{node['NodeManagerHostname']}-{node['NodeID'][:8]}"


def _job(details: Any) -> Job:
    return Job(
        name=details.submission_id,
        status=details.status.value,
        message=redact(details.message or ""),
        started=_moment(details.start_time),
        ended=_moment(details.end_time),
        metadata=details.metadata or {},
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _last_line(error: BaseException) -> str:
    """The line of a remote trace that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return redact(lines[-1] if lines else type(error).__name__)
