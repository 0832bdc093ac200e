"""Kubernetes manifests of a submission for the KubeRay operator (1.5.1 or newer).

A RayJob brings its own cluster up and takes it down again; a RayCluster stands, and jobs are
submitted to it as to any other. Secrets are named (`secretKeyRef`), never written out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

import yaml

from pipeline.submit.submission import FILE, Submission, SubmitError

Kind = Literal["job", "cluster"]
API = "ray.io/v1"
FOLDER = "/rledit"  # where the submission is mounted
FINISHED_TTL_SECONDS = 600
IDLE_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class SecretVariable:
    """A variable whose value is a key of a Kubernetes secret."""

    name: str
    secret: str
    key: str

    @classmethod
    def parse(cls, text: str) -> SecretVariable:
        """Read ``NAME=secret/key``.

        Raises:
            SubmitError: The text is not of that form.
        """
        name, _, reference = text.partition("=")
        secret, _, key = reference.partition("/")
        if not (name and secret and key):
            raise SubmitError(
                f"--secret {name}=…: expected NAME=SECRET/KEY, the name and key of a Kubernetes "
                "secret, as in HF_TOKEN=rledit/hf-token"
            )
        return cls(name=name, secret=secret, key=key)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The pods of a cluster.

    Attributes:
        image: Holds Ray, this project and what it needs, all pinned.
        max_workers: GPU workers the autoscaler may add; none stand idle.
        gpus: GPUs of a worker.
        cpus: Cores of a worker.
        memory_gb: Memory of a worker.
        claim: A persistent volume claim every pod mounts, as ``NAME:/path``.
        secrets: Variables taken from secrets.
        environment: Variables with plain values.
    """

    image: str
    max_workers: int = 8
    gpus: int = 1
    cpus: int = 8
    memory_gb: int = 64
    claim: str | None = None
    secrets: Sequence[SecretVariable] = ()
    environment: Mapping[str, str]


def render(submission: Submission, shape: Shape, kind: Kind) -> str:
    """The manifest as YAML.

    Args:
        submission: What is run; of a standing cluster only the name is used.
        shape: The pods.
        kind: A job with a cluster of its own, or a standing cluster.
    """
    if ":" not in shape.image.rsplit("/", 1)[-1]:
        raise SubmitError(f"--image {shape.image}: name a tag or digest; `latest` changes")
    parts = (
        [_cluster(submission.name, shape)]
        if kind == "cluster"
        else [_config_map(submission), _job(submission, shape)]
    )
    return yaml.safe_dump_all(parts, sort_keys=False, width=100)


def _cluster(name: str, shape: Shape) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "RayCluster",
        "metadata": _metadata(name),
        "spec": _cluster_spec(shape, mounts_submission=None),
    }


def _config_map(submission: Submission) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(submission.name),
        "data": {FILE: json.dumps(asdict(submission), indent=1, sort_keys=True)},
    }


def _job(submission: Submission, shape: Shape) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "RayJob",
        "metadata": _metadata(submission.name),
        "spec": {
            # The id is the lock here too: a second `kubectl create` of it is refused.
            "jobId": submission.name,
            "entrypoint": f"python -m jobs.run_grid {FOLDER}/{FILE} --allow-failed-cells",
            "submissionMode": "K8sJobMode",
            # For a driver that dies with its node: the next goes on from the lake. A cell that
            # fails would fail again, so that does not end the job badly; `rledit status` counts it.
            "backoffLimit": 2,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": FINISHED_TTL_SECONDS,
            "rayClusterSpec": _cluster_spec(shape, mounts_submission=submission.name),
        },
    }


def _metadata(name: str) -> dict[str, Any]:
    return {"name": name, "labels": {"app.kubernetes.io/name": "rledit-at-scale"}}


def _cluster_spec(shape: Shape, mounts_submission: str | None) -> dict[str, Any]:
    head = {"cpu": "4", "memory": "16Gi"}
    worker = {"cpu": str(shape.cpus), "memory": f"{shape.memory_gb}Gi"}
    if shape.gpus:
        worker["nvidia.com/gpu"] = str(shape.gpus)
    return {
        "rayVersion": metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"idleTimeoutSeconds": IDLE_SECONDS, "upscalingMode": "Default"},
        "headGroupSpec": {
            # Pods of a cluster reach the dashboard through its service; no CPU or GPU work here.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
            "template": _pod("ray-head", shape, head, mounts_submission, ports=_PORTS),
        },
        "workerGroupSpecs": [
            {
                "groupName": "gpu" if shape.gpus else "cpu",
                "replicas": 0,
                "minReplicas": 0,
                "maxReplicas": shape.max_workers,
                "rayStartParams": {},
                "template": _pod("ray-worker", shape, worker, mounts_submission),
            }
        ],
    }


_PORTS = (("gcs", 6379), ("dashboard", 8265), ("client", 10001))


def _pod(
    name: str,
    shape: Shape,
    resources: Mapping[str, str],
    mounts_submission: str | None,
    ports: Sequence[tuple[str, int]] = (),
) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if mounts_submission is not None:
        volumes.append({"name": "submission", "configMap": {"name": mounts_submission}})
        mounts.append({"name": "submission", "mountPath": FOLDER, "readOnly": True})
    if shape.claim is not None:
        claim, _, path = shape.claim.partition(":")
        if not path.startswith("/"):
            raise SubmitError(f"--claim {shape.claim}: expected CLAIM:/path")
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "shared", "mountPath": path})
    container: dict[str, Any] = {
        "name": name,
        "image": shape.image,
        "env": _variables(shape),
        "resources": {"requests": dict(resources), "limits": dict(resources)},
    }
    if ports:
        container["ports"] = [{"name": port, "containerPort": number} for port, number in ports]
    if mounts:
        container["volumeMounts"] = mounts
    pod: dict[str, Any] = {"containers": [container]}
    if volumes:
        pod["volumes"] = volumes
    return {"spec": pod}


def _variables(shape: Shape) -> list[dict[str, Any]]:
    plain = {"RAY_USAGE_STATS_ENABLED": "0", **shape.environment}
    return [{"name": name, "value": value} for name, value in plain.items()] + [
        {
            "name": variable.name,
            "valueFrom": {"secretKeyRef": {"name": variable.secret, "key": variable.key}},
        }
        for variable in shape.secrets
    ]
