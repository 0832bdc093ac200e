"""Fixtures of all tests."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tracking_schema import quick_schema
from tests.world_models import quick_world_models

CLUSTER = Path(__file__).with_name("cluster")

# What is imported and collected stays: to look through it for garbage each time takes seconds.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` looks for cluster tests in their folder alone."""
    for item in items:
        if item.get_closest_marker("cluster") and not item.path.is_relative_to(CLUSTER):
            raise pytest.UsageError(f"{item.nodeid}: tests marked cluster lie in tests/cluster")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # DuckDB reports what is frozen at the end as leaks
    gc.enable()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One CPU thread, whatever an earlier test has set: another number sums in another order."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_tracking_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlflow.set_tracking_uri` leaves its store in the environment, where ours looks for one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(autouse=True)
def quick_tracking_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracking databases have their tables without MLflow's migrations, which take a second."""
    quick_schema(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def world_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models of synthetic worlds are trained once for all workers of a session."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with pytest.MonkeyPatch.context() as patch:
        quick_world_models(patch, shared / "world-models")
        yield
