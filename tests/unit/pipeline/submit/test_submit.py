"""Submissions: what is accepted, under which name, and what is sent along."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.grid import Grid
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.results.tracking.tracker import Tracker
from pipeline.submit import ray_cluster
from pipeline.submit.manifest import ClusterShape, SecretVariable, render
from pipeline.submit.package import PACKAGES, stage
from pipeline.submit.probe import FOLDER, probe
from pipeline.submit.ray_cluster import Job, JobServer
from pipeline.submit.reconcile import close_stale_grids
from pipeline.submit.status import job_lines
from pipeline.submit.submission import (
    FILE,
    Submission,
    SubmitError,
    as_json,
    base_name,
    check_files,
    check_run_paths,
    chosen,
    read_record,
    write_record,
)

ROOT = Path(__file__).parents[4]
TINY = ROOT / "tests" / "cluster" / "tiny.yaml"
GRIDS = [TINY, ROOT / "jobs" / "grids" / "demo-world.yaml"]


def submission(grid: Grid | None = None, **values: Any) -> Submission:
    grid = grid or load_grid(TINY)
    given = {"lake": "/mnt/shared/lake", "cache": "/mnt/shared/cache"} | values
    return Submission(name=base_name(grid, given["lake"]), grid=as_json(grid), **given)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_a_grid_arrives_as_it_was_sent(path: Path, tmp_path: Path) -> None:
    grid = load_grid(path)
    submission(grid).write(tmp_path / FILE)
    assert Submission.read(tmp_path / FILE).parsed() == grid


def test_the_name_follows_from_grid_and_lake() -> None:
    grid = load_grid(TINY)
    name = base_name(grid, "/a")
    assert name == base_name(load_grid(TINY), "/a")
    assert len({name, base_name(grid, "/b"), base_name(load_grid(TINY, ["seeds=[1]"]), "/a")}) == 3
    odd = base_name(dataclasses.replace(grid, name="7 Models_of.The World" * 5), "/a")
    assert odd.startswith("grid-7-models-of-the-world") and len(odd) <= 41
    assert odd.replace("-", "").isalnum() and odd == odd.lower()


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (("results/lake", "/c", None), "--lake results/lake: is a relative path"),
        (("s3://bucket/lake", "~/cache", None), "--cache ~/cache: is a relative path"),
        (("memory://lake", "/c", None), "one process only"),
        (("/l", "/c", "sqlite:///mlflow.db"), "--tracking .* four slashes"),
        (("/l", "/c", "http://me:planted-word@host"), r"--tracking http://\*\*\*@host: a password"),
        (("s3://k:planted-word@b/l", "/c", None), r"--lake s3://\*\*\*@b/l: a password"),
        (("/l", "/c", "http://host/?token=planted-word"), "--tracking .*: a password or token"),
    ],
)
def test_places_that_are_not_shared_are_refused(
    places: tuple[str, str, str | None], message: str
) -> None:
    with pytest.raises(SubmitError, match=message) as caught:
        check_run_paths(*places)
    assert "planted-word" not in str(caught.value)


def test_places_that_are_shared_are_taken() -> None:
    check_run_paths("/mnt/lake", "s3://bucket/cache", "sqlite:////var/mlflow.db")
    check_run_paths("file:///mnt/lake", "gs://bucket/cache", "http://127.0.0.1:5000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("models.llama-tiny.checkpoint=models/x", "model llama-tiny: 'models/x' is a relative"),
        ("datasets.world.files={train: a.json, evaluation: /b.json}", "dataset world, train: 'a.j"),
        ("statistics={corpus: wiki.jsonl}", "covariance, corpus: 'wiki.jsonl'"),
    ],
)
def test_files_that_nodes_would_not_find_are_refused(change: str, message: str) -> None:
    with pytest.raises(SubmitError, match=message):
        check_files(load_grid(TINY, [change]))


def test_files_that_nodes_find_are_taken() -> None:
    check_files(load_grid(TINY, ["models.llama-tiny.checkpoint=/mnt/models/x"]))
    check_files(
        load_grid(
            TINY,
            ["models.llama-tiny.checkpoint=owner/name@0123456789abcdef0123456789abcdef01234567"],
        )
    )


def test_what_travels(tmp_path: Path) -> None:
    """The code and the submission; no data, nothing of an earlier run."""
    extra = tmp_path / "my_editors"
    for name in ("__init__.py", "results/lake.parquet", "__pycache__/x.pyc", ".git/config"):
        (extra / name).parent.mkdir(parents=True, exist_ok=True)
        (extra / name).write_text("x")
    folder = tmp_path / "staged"
    folder.mkdir()
    package = stage(submission(), folder, [extra])
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        FILE,
        "jobs/run_grid.py",
        "my_editors/__init__.py",
        "pipeline/results/lake/lake.py",
    } <= names
    tops = {name.split("/")[0] for name in names}
    assert tops - {FILE, "my_editors", *PACKAGES} == {
        top for top in tops if top.endswith(".dist-info")
    }
    unwanted = ("my_editors/results/", "__pycache__", ".git", ".venv", "_cache/")
    assert not [name for name in names if any(part in name for part in unwanted)]
    assert package.files == len(names)
    assert package.bytes == sum((folder / name).stat().st_size for name in names) < 5e6


def test_data_does_not_travel(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(bytes(21 << 20))
    (tmp_path / "staged").mkdir()
    with pytest.raises(SubmitError, match=r"data belongs on storage.*model\.safetensors \(22"):
        stage(submission(), tmp_path / "staged", [tmp_path / "weights"])


def test_variables_are_named_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "HF_TOKEN": "x",
        "PGPASSWORD": "y",
        "AWS_SECRET_ACCESS_KEY": "a-long-secret-key",
        "AZURE_STORAGE_KEY": "k",
        "DB_PASS": "p",
        "MYSQL_PWD": "q",
        "GITLAB_PAT": "r",
        "AWS_CREDENTIALS": "s",
        "AZURE_STORAGE_CONNECTION_STRING": "t",
        "MLFLOW_TRACKING_URI": "http://me:planted-word@host",
    }
    paths = {"HF_HOME": "/mnt/hub", "GOOGLE_APPLICATION_CREDENTIALS": "/mnt/key.json", "PWD": "/"}
    environment = {**paths, "LEFT_ALONE": "z", **secrets}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert chosen(list(paths), environment) == paths
    assert chosen([], environment) == {}
    for name, value in secrets.items():
        with pytest.raises(SubmitError, match=f"--env {name}: this is a secret") as caught:
            chosen([name], environment)
        assert len(value) < 2 or value not in str(caught.value)
    with pytest.raises(SubmitError, match="there is no such variable"):
        chosen(["NOT_THERE"], environment)


class Nodes:
    """Nodes on one machine, each called in turn; some see another disk under the same name."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, work: Any) -> dict[str, list[str]]:
        return {name: work(name) for name in self.names}


def test_the_probe_passes_on_shared_storage_and_leaves_nothing(tmp_path: Path) -> None:
    places = {"lake": str(tmp_path / "lake"), "cache": f"file://{tmp_path}/cache"}
    assert probe(places, "p", Nodes("a", "b", "c")) == {}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_probe_names_the_node_that_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    places = {"lake": str(tmp_path / "lake"), "cache": str(tmp_path / "cache")}
    found = probe(places, "p", Nodes("a"))
    assert set(found) == {"a"}
    assert "cannot write to the cache" in found["a"] and "lake" not in found["a"]


def test_the_probe_names_nodes_with_disks_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same path means another folder on each node, as a local disk does."""

    class PrivateHomes(Nodes):
        def __call__(self, work: Any) -> dict[str, list[str]]:
            found = {}
            for name in self.names:
                monkeypatch.setenv("HOME", str(tmp_path / name))
                found[name] = work(name)
            return found

    found = probe({"lake": "~/lake"}, "p", PrivateHomes("a", "b"))
    assert "does not see in the lake ~/lake what b wrote there" in found["a"]
    assert "what a wrote" in found["b"]


class Client:
    """Ray's own client; its answer is an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_job_info(self, name: str) -> Any:
        raise self.error


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> JobServer:
    monkeypatch.setattr(ray_cluster, "JobSubmissionClient", lambda address: Client(OSError()))
    return JobServer("http://127.0.0.1:1")


def test_a_job_server_that_is_lost_says_what_to_look_at(server: JobServer) -> None:
    gone = requests.exceptions.ConnectionError("connection refused")
    server._client = Client(gone)
    with pytest.raises(SubmitError, match=r"127.0.0.1:1 \(connection refused\); is the cluster up"):
        server.job("x")
    server._client = Client(RuntimeError("404\nJob x does not exist."))
    assert server.job("x") is None
    server._client = Client(RuntimeError("500\ntrace\nout of memory"))
    with pytest.raises(SubmitError, match="127.0.0.1:1: out of memory"):
        server.job("x")


def test_runs_left_open_follow_the_state_of_their_job(tmp_path: Path) -> None:
    """Of this cluster's life: another one's jobs of the same name are judged by themselves."""

    class Server:
        def session(self) -> str:
            return "now"

        def job(self, name: str) -> Job | None:
            states = {"works": "RUNNING", "stopped": "STOPPED"}
            return Job(name=name, status=states[name]) if name in states else None

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(uri, "tiny")
    for name, session in (
        ("works", "now"), ("stopped", "now"), ("unknown", "now"), ("stopped", "before")
    ):  # fmt: skip
        tracker.start(f"{name} {session}", {"submission_id": name, "ray_session": session})
    asked: Any = Server()
    (line,) = close_stale_grids(uri, None, asked)
    assert str(line).startswith("tiny: 2 runs ended as KILLED, 2 still running")
    left = {i.name for i in tracker.invocations() if i.status == "RUNNING"}
    assert left == {"works now", "stopped before"}, "this process lives, whatever it is called"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--secret", "A=b/c"], "--secret: --backend ray has no use for it; add --backend kuberay"),
        (["--image", "x:1"], "--image: --backend ray has no use for it"),
        (
            ["--backend", "kuberay", "--include", "my_editor.py"],
            "--include: --backend kuberay has no use for it; the image must hold that code",
        ),
    ],
)
def test_options_of_the_other_backend_are_refused(options: list[str], message: str) -> None:
    told = CliRunner().invoke(app, ["submit", str(TINY), "--lake", "/l", "--cache", "/c", *options])
    assert isinstance(told.exception, ConfigError) and str(told.exception).startswith(message)


def test_a_lake_that_is_not_mounted_here_is_no_empty_lake(tmp_path: Path) -> None:
    job = Job(name="x-1", status="SUCCEEDED", metadata={"grid": "x", "lake": str(tmp_path / "l")})
    assert list(job_lines(job))[1].startswith(f"  {tmp_path}/l is not there (yet), seen from here")
    write_record(str(tmp_path / "elsewhere"), "x-1", "x", ["k"])
    found = list(job_lines(job, lake=str(tmp_path / "elsewhere")))
    assert found[1] == "  1 cells: 0 done, 0 failed, 1 to run"


def test_the_record_of_a_submission(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    assert read_record(lake, "x-1") is None
    write_record(lake, "x-1", "x", ["k1", "k2"])
    assert read_record(lake, "x-1") == ("k1", "k2")
    assert FOLDER not in {path.name for path in (tmp_path / "lake").iterdir()}


def manifests(kind: Any = "job", **shape: Any) -> list[dict[str, Any]]:
    values = {"image": "registry/rledit:0.1.0", "environment": {"HF_HOME": "/hub"}} | shape
    return list(yaml.safe_load_all(render(submission(), ClusterShape(**values), kind)))


def test_a_rayjob_brings_its_cluster_and_its_submission() -> None:
    secret = SecretVariable.parse("HF_TOKEN=rledit/hf-token")
    config_map, job = manifests(secrets=[secret], claim="shared:/mnt/shared", gpus=2)
    name = submission().name
    assert (config_map["kind"], job["kind"]) == ("ConfigMap", "RayJob")
    sent = Submission(**json.loads(config_map["data"][FILE]))
    assert sent == submission() and sent.parsed() == load_grid(TINY)
    spec = job["spec"]
    assert spec["jobId"] == job["metadata"]["name"] == name
    # Failed cells are no reason for Kubernetes to start the job anew; a dead driver is one.
    assert spec["entrypoint"] == f"python -m jobs.run_grid /rledit/{FILE} --allow-failed-cells"
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]
    (worker,) = cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-gpus"] == "0"
    assert (worker["minReplicas"], worker["maxReplicas"]) == (0, 8)
    for group in (head, worker):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        variables = {v["name"]: v.get("value") for v in container["env"]}
        assert variables["HF_HOME"] == "/hub" and variables["HF_TOKEN"] is None
        (reference,) = [v["valueFrom"] for v in container["env"] if v["name"] == "HF_TOKEN"]
        assert reference == {"secretKeyRef": {"name": "rledit", "key": "hf-token"}}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"submission": "/rledit", "shared": "/mnt/shared"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "2"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_a_standing_cluster_has_no_job() -> None:
    (cluster,) = manifests("cluster")
    assert cluster["kind"] == "RayCluster"
    assert "volumes" not in cluster["spec"]["headGroupSpec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"image": "registry:5000/rledit"}, "name a tag"),
        ({"claim": "shared"}, "expected CLAIM:/path"),
    ],
)
def test_manifests_that_would_not_do(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(SubmitError, match=message):
        manifests(**shape)


def test_a_secret_is_a_reference() -> None:
    with pytest.raises(SubmitError) as caught:
        SecretVariable.parse("HF_TOKEN=hf_abcdefgh")
    assert "NAME=SECRET/KEY" in str(caught.value) and "hf_abcdefgh" not in str(caught.value)
