"""Importing a module leaves the process's environment alone; starting a Ray sets what Ray reads."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import jobs
import pipeline
import rledit
from pipeline.run.fleet import fleet

# MLflow and DeepSpeed read it while they are imported, so it cannot be set later.
READ_AT_IMPORT = {"pipeline/results/tracking/store.py", "pipeline/run/sharded_model.py"}
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def _changes_environment(statement: ast.stmt) -> bool:
    """Whether running a module's statement sets a variable; what it defines runs later."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    text = ast.unparse(statement)
    writes = ("os.environ[", "os.environ.setdefault(", "os.environ.update(", "os.putenv(")
    if isinstance(statement, ast.ClassDef):
        return any(_changes_environment(inner) for inner in statement.body)
    return any(write in text for write in writes)


def test_no_module_sets_the_environment_when_it_is_imported() -> None:
    setting = set()
    for package in (rledit, pipeline, jobs):
        root = Path(str(package.__file__)).parents[1]
        for path in (root / package.__name__).rglob("*.py"):
            if any(map(_changes_environment, ast.parse(path.read_text()).body)):
                setting.add(path.relative_to(root).as_posix())
    assert setting == READ_AT_IMPORT


@pytest.mark.parametrize("users", ["", "1"])
def test_a_local_ray_starts_with_what_it_reads_and_what_the_user_says_stays(
    users: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in RAY:
        monkeypatch.delenv(name, raising=False)
    # Set once, so that the fixture puts back what the fleet sets.
    for name in ("RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", *RAY):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    if users:
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", users)
    monkeypatch.setattr(fleet.ray_constants, "ENABLE_RAY_CLUSTER", False)
    seen: dict[str, str | None] = {}
    monkeypatch.setattr(fleet, "_start", lambda _: seen.update({n: os.environ.get(n) for n in RAY}))
    with fleet.local_fleet(1) as cores:
        assert cores == 1
    assert seen == RAY | ({"RAY_USAGE_STATS_ENABLED": users} if users else {})


def test_a_local_ray_leaves_out_what_only_a_cluster_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fleet.ray_node.Node
    left_out = {name for name in vars(fleet._OwnNode) if name.startswith("start_")}
    assert left_out == {"start_api_server", "start_monitor", "start_log_monitor"}
    assert left_out <= set(vars(whole))  # Ray calls them so
    seen: list[type] = []
    monkeypatch.setattr(fleet.ray, "init", lambda **_: seen.append(fleet.ray_node.Node))
    fleet._start(1)
    assert seen == [fleet._OwnNode]
    assert fleet.ray_node.Node is whole  # others in this process have Ray as it is
