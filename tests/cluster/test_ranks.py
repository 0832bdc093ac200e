"""Training and scoring shared by 2 and 4 processes equal those of one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.launch import launch
from tests.cluster.ranks_worker import CASES
from tests.golden.tolerances import LOSS, WEIGHT

SIZE = 4


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return launch("tests.cluster.ranks_worker", SIZE, tmp_path_factory.mktemp("ranks"), 180)


@pytest.mark.cluster
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_shared_training_equals_one_process(
    reports: list[dict[str, Any]], case: str, ranks: int
) -> None:
    found = [report[f"{case} {ranks}"] for report in reports]
    assert max(f["error"] for f in found) < 1e-9
    assert max(f["loss_error"] for f in found) < 1e-9
    assert len({f["bits"] for f in found[:ranks]}) == 1, "ranks of one group took different steps"


@pytest.mark.cluster
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_training_saved_inside_its_step_goes_on_in_the_same_bits(
    reports: list[dict[str, Any]], ranks: int
) -> None:
    found = [report[f"saved {ranks}"] for report in reports[:ranks]]
    assert all(len(set(states)) == 1 and states[0] for states in zip(*found, strict=True))


@pytest.mark.cluster
@pytest.mark.parametrize("ranks", [2, 4])
def test_in_float32_they_are_as_close_as_recorded_runs(
    reports: list[dict[str, Any]], ranks: int
) -> None:
    found = [report[f"llama-float32 {ranks}"] for report in reports]
    assert 0 < max(f["error"] for f in found) < WEIGHT.limit
    assert max(f["loss_error"] for f in found) < LOSS.limit
    assert len({f["bits"] for f in found[:ranks]}) == 1


@pytest.mark.cluster
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_prompt_is_read_by_one_rank(reports: list[dict[str, Any]], ranks: int) -> None:
    found = [report[f"llama {ranks}"] for report in reports[:ranks]]
    assert sum(f["read"] for f in found) == found[0]["read_alone"]
    assert max(f["read"] for f in found) - min(f["read"] for f in found) <= 1


@pytest.mark.cluster
def test_nothing_to_read_is_nothing(reports: list[dict[str, Any]]) -> None:
    assert [report["empty"] for report in reports] == [0] * SIZE
