"""The tests of tests/gpu work: what they do, done on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.benchmarks.agreement import FLOAT32_TOLERANCE
from tests.gpu import checks


@pytest.mark.parametrize("name", list(checks.SETTINGS))
def test_edits_are_made_and_compared(name: str) -> None:
    exact, again = (checks.edits_of(name, checks.CPU, torch.float32) for _ in range(2))
    assert all(torch.equal(exact[module], again[module]) for module in exact)
    assert checks.distance(again, exact) == 0
    other = {module: value * (1 + 2 * FLOAT32_TOLERANCE) for module, value in exact.items()}
    assert checks.distance(other, exact) > checks.tolerance(name, torch.float32)
    assert 1e-4 < checks.tolerance(name, torch.bfloat16) < 1


def test_a_grid_runs_with_its_peaks_and_plans(tmp_path: Path) -> None:
    found = checks.ran(tmp_path, 0, "editors=[{editor: ultraedit, settings: {step: 1.0e-3}}]")
    assert found.scores["ultraedit"] and found.steps["ultraedit"]
    assert found.planned_gb["ultraedit"] > 1 and found.peak_gb["ultraedit"] > 0


def test_memory_is_that_of_one_model_at_a_time(tmp_path: Path) -> None:
    before, first, second, after = checks.memory_over_tasks(tmp_path, checks.CPU)
    assert before == after == 0 and first == second == 16 * 4 * (1024 * 1024 + 1024)


def test_a_store_has_the_same_bits_in_any_company(tmp_path: Path) -> None:
    assert checks.in_any_company(tmp_path, checks.CPU, torch.float32)


@pytest.mark.parametrize("name", ["rledit", "ultraedit"])
def test_a_solve_asks_the_device_twice(name: str) -> None:
    assert checks.reads_of_a_solve(name, checks.CPU) == 2


def test_reads_are_counted() -> None:
    with checks.HostReads(checks.CPU) as reads:
        total = torch.ones(3).sum()
        assert reads.count == 0
        assert float(total) == 3.0 and bool(total > 1)
    assert reads.count == 2
