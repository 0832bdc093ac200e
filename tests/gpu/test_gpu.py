"""A GPU gives what the CPU gives, in what was planned, and repeats itself.

They skip without a CUDA card. Not yet run on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu import checks
from tests.unit.helpers.text_edits import text_batches
from tests.unit.helpers.tiny_models import random_batches

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(checks.SETTINGS))
def test_edits_are_those_of_the_cpu(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """In float32 to a thousandth; in bfloat16 within one and a half times what it rounds."""
    found, expected = (checks.edits_of(name, where, dtype) for where in (device, checks.CPU))
    assert checks.distance(found, expected) < checks.tolerance(name, dtype)


@pytest.mark.parametrize("name", list(checks.SETTINGS))
def test_a_card_repeats_itself_bit_by_bit(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    first, second = (checks.edits_of(name, device, torch.float32) for _ in range(2))
    assert all(torch.equal(first[module], second[module]) for module in first)


def test_cells_with_a_gpu_have_the_scores_of_those_without(
    device: torch.device, tmp_path: Path
) -> None:
    """Prepared, trained, edited and scored in float32; peaks are within what `plan` says."""
    alone, there = checks.ran(tmp_path / "cpu", 0), checks.ran(tmp_path / "gpu", 1)
    assert there.scores == alone.scores
    for label, steps in alone.steps.items():
        close = {place: pytest.approx(v, rel=1e-2, abs=1e-3) for place, v in steps.items()}
        assert there.steps[label] == close, label
    for label, peak in there.peak_gb.items():
        assert peak <= there.planned_gb[label], label


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_store_has_the_same_bits_of_a_prompt_in_any_company(
    dtype: torch.dtype, device: torch.device, tmp_path: Path
) -> None:
    assert checks.in_any_company(tmp_path, device, dtype)


def test_prefixes_are_sent_without_a_wait(device: torch.device, tmp_path: Path) -> None:
    """From pinned pages, so that the host goes on meanwhile."""
    cache = checks.stored(tmp_path, device, torch.float32)
    found = cache._found(random_batches(1, 12)[0].edit.samples)
    cache._padded(found)  # pages are pinned
    assert checks.synchronisations(lambda: cache._padded(found)) == 0


def test_a_worker_gives_memory_back_before_another_model(
    device: torch.device, tmp_path: Path
) -> None:
    before, first, second, after = checks.memory_over_tasks(tmp_path, device)
    assert first > before and second <= first * 1.05
    assert after == before


@pytest.mark.parametrize("name", ["rledit", "ultraedit"])
def test_a_solve_asks_the_device_twice_for_each_shape(name: str, device: torch.device) -> None:
    """Whether the factor is fine, and how well the system is conditioned."""
    assert checks.reads_of_a_solve(name, device) == 2


@pytest.mark.parametrize("name", ["rledit", "ultraedit"])
def test_how_often_the_host_waits_does_not_depend_on_the_edits(
    name: str, device: torch.device
) -> None:
    """Every wait is one for each batch, micro-batch or matrix, none for each edit or row."""
    one = checks.editor(name, device, torch.float32)
    few, many = (text_batches(one.model, 1, size, group_size=one.group_size)[0] for size in (4, 16))
    one.edit(few)  # kernels are loaded
    waits = []
    for batch in (few, many):
        one.model.prefix_cache.clear()  # neither finds its prefixes
        waits.append(checks.synchronisations(lambda batch=batch: one.edit(batch)))  # type: ignore[misc]
    assert waits[0] == waits[1] > 0
