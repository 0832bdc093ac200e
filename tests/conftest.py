"""Fixtures of all tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One CPU thread, whatever an earlier test has set: another number sums in another order."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_tracking_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlflow.set_tracking_uri` leaves its store in the environment, where ours looks for one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
