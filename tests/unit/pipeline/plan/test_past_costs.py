"""Costs of cells by the finished ones of a lake: of which they hold, and of which not."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from pipeline.config.parse import load_grid
from pipeline.plan.cell_keys import address_of, identity_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.estimate import estimate
from pipeline.plan.estimate.past_costs import PastCosts
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellRecord
from tests.unit.helpers.lake_fixtures import cell as finished

TINY = Path(__file__).parents[3] / "cluster" / "tiny.yaml"


def _records(lake: Lake) -> list[CellRecord]:
    return lake.manifest()


def test_finished_cells_cost_what_they_cost(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(finished(editor="ultraedit", grid="other", model="llama-tiny", batch_size=4,
                         n_batches=8))  # fmt: skip
    lake.commit(finished(editor="ft", grid="other", model="llama-tiny"))
    cells = cells_of(load_grid(TINY))
    past = PastCosts(_records(lake))
    ultra = next(c for c in cells if c.label == "ultraedit")
    found = past.seconds(ultra)
    assert found is not None and found.measured
    assert found.edit == pytest.approx(1.5 * ultra.n_edits / 1000)
    assert found.score == pytest.approx(0.5 / 32 * ultra.n_edits)
    assert past.peak_gb(ultra) == 0.75
    rledit = next(c for c in cells if c.label == "rledit")
    assert past.seconds(rledit) is None
    costs = {c.work.cell.label: c for c in estimate(cells, _records(lake)).cells}
    assert costs["ultraedit"].seconds.measured and not costs["rledit"].seconds.measured


def _ultraedit_on(folder: Path, layers: int) -> Cell:
    """The tiny grid's cell of ultraedit on a model `m` of so many layers, by its config.json."""
    LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=2,
        vocab_size=300, architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    model = json.dumps({"name": "m", "modules": ["down:1"], "checkpoint": str(folder)})
    cells = cells_of(load_grid(TINY, [f"models=[{model}]"]))
    return next(cell for cell in cells if cell.label == "ultraedit")


def test_a_checkpoint_does_not_cost_what_another_of_its_name_cost(tmp_path: Path) -> None:
    small, large = (_ultraedit_on(tmp_path / str(n), layers=n) for n in (2, 30))
    lake = Lake(str(tmp_path / "lake"))
    result = finished(editor="ultraedit", grid="other", model="m", scale="full")
    lake.commit(replace(result, identity=identity_of(small)))
    past = PastCosts(_records(lake))
    assert past.seconds(small) is not None and past.peak_gb(small) == 0.75
    assert past.seconds(large) is None and past.peak_gb(large) is None


@pytest.mark.parametrize(
    "settings", [{"modules": ["down:0"]}, {"modules": ["down:0-1"], "steps": 3}]
)
def test_a_cell_of_other_work_does_not_cost_what_this_one_cost(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Other linear layers, or another number of steps; a rate is no work."""

    def ft(**settings: Any) -> Cell:
        editors = json.dumps([{"editor": "ft", "settings": settings}])
        return cells_of(load_grid(TINY, [f"editors={editors}"]))[0]

    done = ft(modules=["down:0-1"], steps=2, lr=1e-4)
    lake = Lake(str(tmp_path / "lake"))
    result = finished(editor="ft", grid="other", model=done.model.name)
    lake.commit(replace(result, identity=identity_of(done)))
    past = PastCosts(_records(lake))
    assert past.seconds(ft(modules=["down:0-1"], steps=2, lr=1e-3)) is not None
    assert past.seconds(ft(**({"steps": 2} | settings))) is None


def _one(editor: str, *more: str) -> Cell:
    return cells_of(load_grid(TINY, [f"editors=[{editor}]", *more]))[0]


def _cost_of(lake: Lake, done: Cell, **changes: Any) -> PastCosts:
    """What cells cost by a lake that has one."""
    resources = asdict(done.resources)
    result = replace(
        finished(editor="ft", n_batches=done.stream.n_batches, batch_size=done.stream.batch_size),
        address=address_of(done),
        identity=identity_of(done),
        resolved={**identity_of(done), "execution": {"threads": done.threads, **resources}},
        threads=done.threads,
        ranks=done.resources.ranks,
    )
    lake.commit(replace(result, **changes))
    return PastCosts(_records(lake))


@pytest.mark.parametrize(
    "change",
    [
        "threads=2",
        "resources={gpus: 1}",
        "resources={gpus: 1, ranks: 2}",
        "measurements=[fluency]",
        "protocols=[token_accuracy, generation]",
    ],
)
def test_a_cell_on_other_cores_or_scored_otherwise_does_not_cost_what_this_one_cost(
    change: str, tmp_path: Path
) -> None:
    ft = "{editor: ft}"
    past = _cost_of(Lake(str(tmp_path / "lake")), _one(ft))
    assert past.seconds(_one(ft)) is not None
    assert past.seconds(_one(ft, "protocols=[token_accuracy]")) is not None
    assert past.seconds(_one(ft, change)) is None


@pytest.mark.parametrize(("editor", "less"), [("ft", 1 / 2), ("none", 1.0)])
def test_scoring_costs_by_the_edits_of_all_points(editor: str, less: float, tmp_path: Path) -> None:
    """Of three batches after each one, six are scored; after the last one, three; the unedited
    model is read once."""
    entry = f"{{editor: {editor}}}"
    lake = Lake(str(tmp_path / "lake"))
    past = _cost_of(lake, _one(entry), score_seconds=6.0, edit_ms=1.0)
    every, last = (past.seconds(_one(entry, f"checkpoints={n}")) for n in (3, 1))
    assert every is not None and last is not None
    assert (every.score, last.score) == pytest.approx((6.0, 6.0 * less))


@pytest.mark.parametrize("cap", [10, 100])
def test_a_training_of_single_edits_costs_by_the_edits_it_draws(cap: int, tmp_path: Path) -> None:
    settings = f"{{train_steps: 50, sequence_cap: {cap}, curriculum_patience: 1}}"
    dafnet = _one(f"{{editor: dafnet, settings: {settings}}}")
    lake = Lake(str(tmp_path / "lake"))
    found = _cost_of(lake, dafnet, train_seconds=100.0, edit_ms=1.0).seconds(dafnet)
    assert found is not None and found.training == pytest.approx(100.0)
