"""Faults of workers, nodes, drivers and disks under a grid leave its results unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.faults import GRID
from tests.chaos.command import fault_run
from tests.chaos.schedule import KINDS, PHASES, Fault, schedule

pytestmark = pytest.mark.cluster

# One of each kind, where it is quick and has much to spoil; on the cells of that grid which go
# through these phases.
EDITORS = ("none", "memit", "rledit")
QUICK = (
    Fault(number=1, kind="worker", phase="commit", moment=0.5, delay=0.01, gentle=False),
    Fault(number=2, kind="driver", phase="score", moment=0.5, delay=0.0, gentle=True),
    Fault(number=3, kind="disk", phase="train", moment=0.5, delay=0.0, gentle=False),
    Fault(number=4, kind="node", phase="edit", moment=0.5, delay=0.0, gentle=False),
)


def test_one_fault_of_each_kind(tmp_path: Path) -> None:
    grid = yaml.safe_load(Path(GRID).read_text())
    grid["editors"] = [entry for entry in grid["editors"] if entry["editor"] in EDITORS]
    assert len(grid["editors"]) == len(EDITORS)
    smaller = tmp_path / "faults.yaml"
    smaller.write_text(yaml.safe_dump(grid))
    outcomes = list(fault_run(smaller, QUICK, tmp_path / "faults"))
    assert {outcome.fault.kind for outcome in outcomes} == set(KINDS)
    assert all(outcome.hit is not None for outcome in outcomes)
    assert [problem for outcome in outcomes for problem in outcome.problems] == []


@pytest.mark.slow
def test_every_fault_in_every_phase(tmp_path: Path) -> None:
    outcomes = list(fault_run(GRID, schedule(30, seed=0), tmp_path / "faults"))
    hit = {(o.fault.kind, o.hit.stage) for o in outcomes if o.hit is not None}
    assert len(hit) == len(KINDS) * len(PHASES)
    assert [problem for outcome in outcomes for problem in outcome.problems] == []
