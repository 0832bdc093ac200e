"""The overhead benchmark of the pipeline runs; its limits are the benchmark's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_the_overhead_of_cells_and_plans_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "overhead.json"
    command = [sys.executable, "-m", "jobs.overhead", "--cells", "4", "--json", str(out)]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    found = json.loads(out.read_text())
    assert 0 < found["overhead_seconds"] < found["cell_seconds"]
    assert found["plan_500_cells_seconds"] > 0
    assert 0 < found["help_cpu_seconds"] < found["plan_500_cells_command_cpu_seconds"]
    assert 0 < found["import_plan_cpu_seconds"] < found["import_driver_cpu_seconds"]
