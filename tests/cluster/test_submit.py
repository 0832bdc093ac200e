"""A grid on a real cluster: a Ray head with token authentication and an MLflow server."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.job_submission import JobSubmissionClient

from tests.chaos.cluster import free_ports
from tests.cluster.conftest import GRID, rledit
from tests.cluster.head import Head, ray_head

pytestmark = pytest.mark.cluster

PLANTED = {
    "HF_TOKEN": "hf_planted0token0of0the0hub",
    "AWS_SECRET_ACCESS_KEY": "planted0aws0secret0key",
    "PGPASSWORD": "planted0database0password",
}
TRACKING_PASSWORD = "planted0tracking0password"
EDITORS = "editors=[{editor: none}, {editor: ultraedit, settings: {step: 1.0e-3}}]"
SLEEPER = (
    "editors=[{editor: 'tests.benchmarks.scheduling.sleeper:SleepEditor', settings: {seconds: 60}}]"
)
WAIT_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Place:
    """A cluster with its storage and its tracking server, and what the client has printed."""

    head: Head
    folder: Path
    server: str
    output: list[str]

    def rledit(
        self, *arguments: str | Path, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a client of the cluster."""
        done = rledit(*arguments, check=check, **self.head.environment, **PLANTED)
        self.output.extend([done.stdout, done.stderr])
        return done

    def submit(self, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Submit the tiny grid, or what `more` makes of it."""
        places = ["--lake", str(self.folder / "lake"), "--cache", str(self.folder / "cache")]
        address = ["--address", self.head.address]
        return self.rledit("submit", GRID, *address, *places, *more, check=check)

    def wait(self, name: str) -> None:
        """Wait for the end of a job."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.jobs.get_job_status(name).is_terminal():
            assert time.monotonic() < deadline, self.jobs.get_job_logs(name)
            time.sleep(0.5)

    @property
    def jobs(self) -> JobSubmissionClient:
        """Ray's own client."""
        headers = {"Authorization": f"Bearer {self.head.token}"}
        return JobSubmissionClient(self.head.address, headers=headers)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """An MLflow server of this test's own on loopback, with a database behind it."""
    (port,) = free_ports(1)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with (folder / "mlflow-server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def wait_for_server(server: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{server}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"no MLflow server at {server}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cluster")
    with mlflow_server(folder) as server:
        nodes = {
            "MLFLOW_TRACKING_URI": f"http://rledit:{TRACKING_PASSWORD}@{server}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            **PLANTED,
        }
        with ray_head(folder, nodes) as head:
            wait_for_server(server)
            with pytest.MonkeyPatch.context() as patched:
                for name, value in head.environment.items():
                    patched.setenv(name, value)
                yield Place(head=head, folder=folder, server=f"http://{server}", output=[])


@pytest.fixture(scope="module")
def submitted(place: Place) -> str:
    """The id of a submission that has run to its end."""
    said = place.submit("--set", EDITORS).stdout
    name = said.split("submitted ")[1].split()[0]
    assert "working directory: " in said and " MB" in said
    place.wait(name)
    return name


def test_round_trip(place: Place, submitted: str) -> None:
    assert submitted.startswith("tiny-") and len(submitted) == len("tiny-") + 8
    shown = place.rledit("status", submitted, "--address", place.head.address).stdout
    assert (place.folder / "lake" / "cells").is_dir()
    assert f"{submitted}: SUCCEEDED" in shown
    assert "2 cells: 2 done, 0 failed, 0 to run" in shown
    sql = "SELECT editor, count(*) AS n FROM runs WHERE final GROUP BY editor ORDER BY editor"
    answer = place.rledit("query", sql, "--lake", place.folder / "lake", "--format", "csv").stdout
    assert answer.split() == ["editor,n", "none,2", "ultraedit,2"]


def test_the_cells_are_tracked_on_the_server(place: Place, submitted: str) -> None:
    client = MlflowClient(place.server)
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    cells = [run for run in runs if run.data.tags["kind"] == "cell"]
    (parent,) = [run for run in runs if run.data.tags.get("submission_id") == submitted]
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["invocation"] for run in cells} == {parent.info.run_id}
    assert sorted(run.data.tags["editor"] for run in cells) == ["none", "ultraedit"]
    assert all(run.data.metrics["efficacy_token_accuracy"] >= 0 for run in cells)


def test_the_tracking_view_can_be_made_anew(place: Place, submitted: str) -> None:
    """A fresh database becomes equal to the one the job wrote."""
    uri = f"sqlite:///{place.folder / 'again.db'}"
    where = ["--lake", str(place.folder / "lake"), "--tracking", uri]
    assert "tiny: 2 cells logged anew" in place.rledit("rebuild", *where).stdout
    contents = []
    for store in (place.server, uri):
        client = MlflowClient(store)
        experiment = client.get_experiment_by_name("tiny")
        runs = client.search_runs([experiment.experiment_id], "tags.kind = 'cell'")
        contents.append({r.data.tags["cell"]: (r.data.metrics, r.data.params) for r in runs})
    assert contents[0] == contents[1]


def test_submission_is_a_lock_and_cancelling_closes_the_tracked_run(place: Place) -> None:
    said = place.submit("--set", SLEEPER, "--set", "name=asleep").stdout
    name = said.split("submitted ")[1].split()[0]
    again = place.submit("--set", SLEEPER, "--set", "name=asleep", check=False)
    assert again.returncode == 2
    assert f"{name} is RUNNING already" in again.stderr
    assert f"rledit status {name}" in again.stderr
    client = MlflowClient(place.server)
    deadline = time.monotonic() + WAIT_SECONDS
    while client.get_experiment_by_name("asleep") is None and time.monotonic() < deadline:
        time.sleep(0.5)
    experiment = client.get_experiment_by_name("asleep")
    ended = place.rledit(
        "cancel", name, "--address", place.head.address, "--tracking", place.server
    )
    assert f"{name}: STOPPED" in ended.stdout
    *_, last = place.jobs.get_job_logs(name).strip().splitlines()
    assert last == "error: ended by SIGTERM; run the same command again to go on from here"
    assert not re.search("Traceback|SystemE|SIGTERM received", place.jobs.get_job_logs(name))
    statuses = [run.info.status for run in client.search_runs([experiment.experiment_id])]
    assert statuses == ["KILLED"]
    # What has ended can be submitted again, under a name of its own; refused here by its storage.
    unwritable = place.folder / "unwritable"
    unwritable.write_text("a file where the cache should be a folder")
    refused = place.rledit(
        *("submit", GRID, "--address", place.head.address, "--lake", place.folder / "lake"),
        *("--cache", unwritable, "--set", SLEEPER, "--set", "name=asleep"),
        check=False,
    )
    assert f"submitted {name}-2" in refused.stdout
    assert refused.returncode == 2
    assert "probe failed: node" in refused.stderr and "cannot write to the cache" in refused.stderr


def test_a_client_without_the_token_is_told_so(place: Place) -> None:
    wrong = place.folder / "wrong-token"
    wrong.write_text("0" * 64)
    own = {**place.head.environment, "RAY_AUTH_TOKEN_PATH": str(wrong)}
    answer = rledit("status", "--address", place.head.address, check=False, **own)
    assert answer.returncode == 2
    assert "does not accept this client" in answer.stderr


def test_no_secret_is_anywhere(place: Place, submitted: str) -> None:
    """Neither in logs, nor in the lake, the tracking store, the job's description or our output."""
    client = place.jobs
    jobs = [details.dict() for details in client.list_jobs()]
    assert any(job["submission_id"] == submitted for job in jobs)
    database = sqlite3.connect(place.folder / "mlflow.db")
    texts = {
        "jobs": json.dumps(jobs, default=str),
        "job log": client.get_job_logs(submitted),
        "tracking": "\n".join(database.iterdump()),
        "client": "\n".join(place.output),
    }
    database.close()
    for root in (place.folder, place.head.session):
        for path in root.rglob("*"):
            if path.is_file() and path != place.folder / "ray-token":
                texts[str(path)] = path.read_bytes().decode("latin-1")
    assert any("logs/job-driver" in place for place in texts)
    assert any(".parquet" in place for place in texts)
    secrets = [*PLANTED.values(), TRACKING_PASSWORD, place.head.token]
    assert not {(where, s) for where, text in texts.items() for s in secrets if s in text}


def test_the_head_keeps_to_the_loopback(place: Place) -> None:
    found = {ip for addresses in place.head.listening().values() for ip in addresses}
    assert found and {ip.removeprefix("::ffff:") for ip in found} == {"127.0.0.1"}
