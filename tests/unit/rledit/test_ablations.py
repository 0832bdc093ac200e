"""RLEdit's ablations: each takes away what it says, and nothing else, judged by the reference
implementation."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from rledit.editors.rledit import RLEditConfig
from tests.unit.helpers.oracle import Pair, check, make_pair, relative
from tests.unit.helpers.tiny_models import double_arithmetic, random_batches

TABLE4 = Path(__file__).parents[3] / "jobs" / "grids" / "table4.yaml"
# What each variant of the grid takes away, beside the row `rledit`.
ABLATIONS: dict[str, dict[str, Any]] = {
    entry["variant"]: {k: v for k, v in entry["settings"].items() if k != "reference"}
    for entry in yaml.safe_load(TABLE4.read_text())["editors"]
    if entry.get("variant", "").startswith("no_")
}


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    double_arithmetic(monkeypatch)


def pair_of(name: str | None, **fast: Any) -> Pair:
    """RLEdit without something, beside a reference implementation that has the same reward."""
    without = {"depth": 3, **(ABLATIONS[name] if name else {})}
    both = {key: without.pop(key) for key in ("depth", "reg_coef") if key in without}
    return make_pair("llama", fast=without | fast, **both)


def test_without_rl_each_batch_is_optimised_on_its_own_from_the_unedited_model() -> None:
    pair = pair_of("no_rl")
    batches = random_batches(3, 5)
    check(pair.train_each(batches), pair.tolerance)
    assert len(pair.clipped) == 3
    check(pair.edit(batches), pair.tolerance)


def test_without_rl_a_trajectory_is_the_sum_of_its_batches() -> None:
    """Before a step is made, no batch knows of another but through the running moments."""
    batches = random_batches(3, 5)
    pair = pair_of("no_rl", optimise="trajectory", max_grad_norm=1e9)
    pair.fast.train_step(batches)
    parts = [pair.book.trajectory([batch]).gradients for batch in batches]
    for shape, tensors in parts[0].items():
        for name in tensors:
            total = sum(part[shape][name] for part in parts)
            assert isinstance(total, Tensor)
            assert relative(pair.clipped[-1][f"{shape}{name}"], total) < 1e-8, name


@pytest.mark.parametrize("name", ["no_backtracking", "no_regularisation"])
def test_one_term_is_gone_from_the_reward(name: str) -> None:
    pair = pair_of(name)
    batches = random_batches(3, 5)
    check(pair.train(batches), pair.tolerance)
    check(pair.edit(batches), pair.tolerance)


def test_every_ablation_learns_something_else() -> None:
    assert set(ABLATIONS) == {"no_rl", "no_backtracking", "no_regularisation"}
    batches = random_batches(3, 5)
    learned: list[Tensor] = []
    for name in (None, *ABLATIONS):
        pair = pair_of(name)
        pair.fast.train_step(batches)
        networks = pair.fast.networks.values()
        learned.append(torch.cat([p.flatten() for n in networks for p in n.parameters()]))
    for first, second in itertools.combinations(learned, 2):
        assert relative(first, second) > 1e-6


def test_backtracking_without_a_transition_is_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        RLEditConfig(modules=("down:1",), transition=False)
