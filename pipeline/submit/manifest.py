"""Kubernetes manifests of a submission for the KubeRay operator (1.5.1 or newer).

A RayJob brings its own cluster up and takes it down again; a RayCluster stands, and jobs are
submitted to it as to any other. Secrets are named (`secretKeyRef`), never written out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Literal

import jinja2
import yaml

from pipeline.submit.submission import FILE, Submission, SubmitError

Kind = Literal["job", "cluster"]
FOLDER = "/rledit"  # where the submission is mounted
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("pipeline.submit"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)
TEMPLATES.policies["json.dumps_kwargs"] = {"sort_keys": False}


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
class ClusterShape:
    """The pods of a cluster.

    Attributes:
        image: Holds Ray, this project and what it needs, all pinned.
        max_workers: GPU workers the autoscaler may add; none stand idle.
        gpus: GPUs of a worker, as `cpus` and `memory_gb`.
        claim: A persistent volume claim every pod mounts, as ``NAME:/path``.
    """

    image: str
    max_workers: int = 8
    gpus: int = 1
    cpus: int = 8
    memory_gb: int = 64
    claim: str | None = None
    secrets: Sequence[SecretVariable] = ()
    environment: Mapping[str, str]


def render(submission: Submission, shape: ClusterShape, kind: Kind) -> str:
    """The manifest as YAML: a job with a cluster of its own, or a standing cluster.

    Raises:
        SubmitError: The image has no tag, or the claim no path.
    """
    if ":" not in shape.image.rsplit("/", 1)[-1]:
        raise SubmitError(f"--image {shape.image}: name a tag or digest; `latest` changes")
    claim, _, mount = (shape.claim or "").partition(":")
    if shape.claim is not None and not mount.startswith("/"):
        raise SubmitError(f"--claim {shape.claim}: expected CLAIM:/path")
    worker = {"cpu": str(shape.cpus), "memory": f"{shape.memory_gb}Gi"}
    if shape.gpus:
        worker["nvidia.com/gpu"] = str(shape.gpus)
    text = TEMPLATES.get_template("kuberay.yaml.j2").render(
        submission=submission,
        shape=shape,
        kind=kind,
        claim=claim,
        mount=mount,
        worker=worker,
        variables={"RAY_USAGE_STATS_ENABLED": "0", **shape.environment},
        ray=metadata.version("ray"),
        folder=FOLDER,
        file=FILE,
        content=json.dumps(asdict(submission), indent=1, sort_keys=True),
    )
    return yaml.safe_dump_all(yaml.safe_load_all(text), sort_keys=False, width=100)
