"""A search judges its own trials alone, and says before it runs which ones cannot be run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import address_of, identity_of
from pipeline.results.lake.lake import Lake
from pipeline.run import tuning
from pipeline.run.tuning import load_search, tune, write_record
from pipeline.storage.run_paths import RunPaths
from tests.unit.helpers.lake_fixtures import cell as finished

SEARCH = """
name: search
models: [{name: llama-tiny, world_model: tiny}]
datasets: [{name: world, split: validation, %s}]
editors: [{editor: %s}]
streams: [{n_batches: %d, batch_size: 2}]
seeds: %s
"""
WORLD = "world: {n_subjects: 60}"
ULTRAEDIT = "ultraedit, candidates: [{step: %s}, {step: 5.0e-3}]"


@pytest.fixture
def run_plan(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commits drawn scores of every missing trial, other ones for every stream; returns which."""
    begun: list[str] = []

    def run(grid: Any, plan: Any, paths: RunPaths, *_: Any) -> int:
        lake = Lake(paths.lake)
        for key in plan.outdated:
            lake.forget(key)
        lake.show(map(address_of, plan.cells))
        for cell in plan.missing:
            begun.append(cell.path)
            address = address_of(cell)
            made = finished(
                noise=cell.stream.n_batches,
                **{k: v for k, v in vars(address).items() if k != "cell_key"},
            )
            made = replace(made, address=address, identity=identity_of(cell))
            lake.commit(replace(made, train_seconds=0.0))
        return 0

    monkeypatch.setattr(tuning, "run_plan", run)
    return begun


def searched(folder: Path, results: str, *values: Any, **options: bool) -> dict[str, Any]:
    path = folder / "search.yaml"
    path.write_text(SEARCH % values)
    return tune(load_search(path), RunPaths.under(folder / results), Console(quiet=True), **options)


def test_trials_on_another_stream_are_no_part_of_the_objective(
    run_plan: list[str], tmp_path: Path
) -> None:
    editor = ULTRAEDIT % 1e-3
    searched(tmp_path, "one", WORLD, editor, 2, "[0]")
    again = searched(tmp_path, "one", WORLD, editor, 4, "[1]")
    alone = searched(tmp_path, "other", WORLD, editor, 4, "[1]")
    assert again["editors"] == alone["editors"]
    assert len(run_plan) == 6


def test_a_changed_candidate_takes_the_old_ones_place_when_told_to(
    run_plan: list[str], tmp_path: Path
) -> None:
    searched(tmp_path, "one", WORLD, ULTRAEDIT % 1e-3, 2, "[0]")
    with pytest.raises(ConfigError, match="--replace"):
        searched(tmp_path, "one", WORLD, ULTRAEDIT % 2e-3, 2, "[0]")
    changed = searched(tmp_path, "one", WORLD, ULTRAEDIT % 2e-3, 2, "[0]", replace=True)
    assert changed["editors"]["ultraedit"]["trials"][0]["settings"]["step"] == 2e-3
    assert len(run_plan) == 3


def test_trials_that_the_data_cannot_serve_are_named_before_any_runs(
    run_plan: list[str], tmp_path: Path
) -> None:
    rows = [{"prompt": f"The mayor of town {i} is", "target": f"Ann {i}"} for i in range(60)]
    (tmp_path / "edits.json").write_text(json.dumps(rows))
    memit = "memit, candidates: [{clamp: 1.0}, {clamp: 2.0}]"
    with pytest.raises(ConfigError, match=r"memit/trial0/.*subject.*memit/trial1"):
        searched(tmp_path, "one", f"files: {{all: {tmp_path}/edits.json}}", memit, 1, "[0]")
    assert run_plan == []


def test_trials_that_trip_over_rows_are_named_before_any_runs(
    run_plan: list[str], tmp_path: Path
) -> None:
    rows = [{"prompt": f"The mayor of town {i} is", "target": "Xyzzyx"} for i in range(60)]
    (tmp_path / "edits.json").write_text(json.dumps(rows))
    data = f"world: {{n_subjects: 60}}, files: {{all: {tmp_path}/edits.json}}"
    with pytest.raises(ConfigError, match=r"ultraedit/trial0(.|\n)*no token for a part"):
        searched(tmp_path, "one", data, ULTRAEDIT % 1e-3, 1, "[0]")
    assert run_plan == []


def test_a_record_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "x.tuned.json"
    write_record({"pool": "validation"}, path)
    write_record({"pool": "train"}, path)
    assert json.loads(path.read_text()) == {"pool": "train"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.tuned.json"]
