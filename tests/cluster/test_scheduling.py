"""The scheduling benchmark runs, and its cells do not cost much more than their sleep."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_small_benchmark() -> None:
    command = [sys.executable, "-m", "jobs.scheduling", "--cells", "8", "--seconds", "2"]
    command += ["--slots", "2", "--nodes", "1", "--planned", "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    text = done.stdout
    assert "8 cells of 2 s on 2 slots: ideal 8.0 s" in text
    (overhead,) = re.findall(r"overhead per cell: ([\d.]+) s", text)
    (workers,) = re.findall(r"\((\d+) workers for 8 cells\)", text)
    (planning,) = re.findall(r"planning 500 cells: ([\d.]+) s", text)
    assert float(overhead) <= 5.0
    assert int(workers) <= 3  # reused; one more where Ray replaced one
    assert float(planning) <= 2.0
