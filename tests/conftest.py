"""Fixtures of all tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One CPU thread, whatever an earlier test has set: another number sums in another order."""
    torch.set_num_threads(1)
