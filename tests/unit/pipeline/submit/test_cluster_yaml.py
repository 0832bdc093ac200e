"""`cluster.yaml` and its documented variants: by Ray's own check, and by what that misses."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[4]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())

# What each provider needs, and what it knows; Ray takes any key and ignores the unknown.
NEEDED = {
    "aws": {"region"},
    "gcp": {"region", "availability_zone", "project_id"},
    "local": {"head_ip", "worker_ips"},
}
KNOWN = {
    "aws": {"availability_zone", "cache_stopped_nodes", "use_internal_ips", "security_group"},
    "gcp": {"gcp_credentials", "use_internal_ips"},
    "local": set(),
}
MACHINE = {"aws": "InstanceType", "gcp": "machineType"}
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}|BEGIN [A-Z ]*PRIVATE KEY|://[^/\s]+:[^/\s]+@|[0-9a-f]{40}"
)


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """The file as it is, and with the parts that the documentation replaces."""
    yield "cluster.yaml", CLUSTER
    text = (ROOT / "docs" / "cluster.md").read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.S):
        parts = yaml.safe_load(block)
        merged = {k: v for k, v in {**CLUSTER, **parts}.items() if v is not None}
        yield f"docs: {parts['provider']['type']}", merged


def problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with a launcher file beyond Ray's schema."""
    return [*_provider(config), *_node_types(config), *_commands(config)]


def _provider(config: Mapping[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    kind = provider["type"]
    for key in NEEDED[kind]:
        if not provider.get(key):
            yield f"provider.{key} is missing"
    for key in provider.keys() - NEEDED[kind] - KNOWN[kind] - {"type"}:
        yield f"provider.{key} is unknown to {kind}"
    if not config.get("auth", {}).get("ssh_user"):
        yield "auth.ssh_user is missing"
    if not config.get("idle_timeout_minutes"):
        yield "idle_timeout_minutes is missing"
    docker = config.get("docker", {})
    for key in ("head_image", "worker_image"):
        version = metadata.version("ray")
        if f":{version}-py311" not in docker.get(key, ""):
            yield f"docker.{key} is not pinned to Ray {version} on Python 3.11"


def _node_types(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config["provider"]["type"]
    if kind == "local":
        return
    types = config.get("available_node_types") or {}
    head = config.get("head_node_type")
    if head not in types or len(types) < 2:
        yield "node types: a head type and at least one worker type are needed"
        return
    if types[head]["resources"].get("GPU", 0):
        yield "the head has GPUs"
    if not any(t["resources"].get("GPU", 0) for name, t in types.items() if name != head):
        yield "no worker has a GPU"
    for name, node in types.items():
        if not node["node_config"].get(MACHINE[kind]):
            yield f"{name}: node_config.{MACHINE[kind]} is missing"
        if name != head:
            low, high = node.get("min_workers", 0), node.get("max_workers", 0)
            if not 0 <= low <= high <= config["max_workers"] or not high:
                yield f"{name}: {low} to {high} workers of {config['max_workers']}"
            if low:
                yield f"{name}: {low} workers stand idle"


def _commands(config: Mapping[str, Any]) -> Iterator[str]:
    commands = [
        command
        for key, values in config.items()
        if key.endswith("commands")
        for command in values or []
    ]
    text = "\n".join(commands)
    if re.search(r"(dashboard-host|host)[= ](0\.0\.0\.0|::)", text):
        yield "a dashboard or server listens on every address"
    for command in commands:
        if "ray start" in command and "RAY_AUTH_MODE=token" not in command:
            yield "a node starts without token authentication"
        if "ray start --head" in command and "--dashboard-host=127.0.0.1" not in command:
            yield "the dashboard is not kept on the loopback"
    installed = [Requirement(text) for text in re.findall(r'"([^"]+==[^"]+)"', text)]
    names = {canonicalize_name(r.name): str(r.specifier)[2:] for r in installed}
    for wanted in map(Requirement, _dependencies()):
        version = names.get(canonicalize_name(wanted.name))
        if version is None:
            yield f"set-up does not pin {wanted.name}"
        elif not wanted.specifier.contains(version):
            yield f"set-up installs {wanted.name} {version}, the project wants {wanted.specifier}"
    if "pip install" in text and re.search(r"pip install[^\n]*\s-U|--upgrade", text):
        yield "set-up upgrades what is pinned"


def _dependencies() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return list(tomllib.load(file)["project"]["dependencies"])


@pytest.mark.parametrize(("name", "config"), list(variants()))
def test_ray_takes_it_and_nothing_is_missing(name: str, config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))
    assert problems(config) == []
    assert not SECRET.search(yaml.safe_dump(config))


def test_there_is_a_variant_for_each_provider() -> None:
    assert {config["provider"]["type"] for _, config in variants()} == set(NEEDED)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("provider", "region"), None, "provider.region is missing"),
        (("provider", "regoin"), "us-east-1", "provider.regoin is unknown"),
        (("auth", "ssh_user"), None, "auth.ssh_user is missing"),
        (("available_node_types",), {}, "node types"),
        (("available_node_types", "head", "resources", "GPU"), 1, "the head has GPUs"),
        (("available_node_types", "gpu", "max_workers"), 99, "gpu: 0 to 99 workers of 16"),
        (("available_node_types", "gpu", "node_config", "InstanceType"), None, "InstanceType"),
        (("docker", "worker_image"), "rayproject/ray:latest-gpu", "docker.worker_image"),
        (("setup_commands",), ['pip install "torch==2.0.0"'], "installs torch 2.0.0"),
        (
            ("head_start_ray_commands",),
            ["ray start --head --dashboard-host=0.0.0.0"],
            "listens on every address",
        ),
    ],
)
def test_the_check_sees_what_ray_does_not(path: tuple[str, ...], value: Any, problem: str) -> None:
    broken = copy.deepcopy(CLUSTER)
    inner = broken
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert any(problem in found for found in problems(broken)), problems(broken)
