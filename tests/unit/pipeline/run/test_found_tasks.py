"""Tasks whose work is done already say so: models, networks, key covariance, steps, cells."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.inputs import datasets
from pipeline.plan.cell_keys import address_of, identity_of
from pipeline.plan.cells import cells_of
from pipeline.results.lake.lake import Lake
from pipeline.run.fleet.attempts import Outcome, _Together
from pipeline.run.fleet.queue import Finished, Queue
from pipeline.run.tasks import FOUND, perform, tasks_of
from pipeline.storage.run_paths import RunPaths

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
EDITORS = (
    "editors=[{editor: ultraedit}, {editor: malmen, settings: {rank: 4, n_blocks: 1, "
    "initial_step: 1.0e-3, train_steps: 1, trajectory_batches: 1}}, {editor: memit, settings: "
    "{modules: ['down:0'], fact_token: last, value_steps: 1}}]"
)


def silent(*_: object, **__: object) -> None:
    pass


def test_what_is_there_is_found(tmp_path: Path) -> None:
    more = ["streams=[{n_batches: 1, batch_size: 4}]", "checkpoints=1", "covariance.documents=40"]
    cells = cells_of(load_grid(GRID, [EDITORS, *more]))
    run_paths = RunPaths.under(tmp_path)
    tasks = tasks_of(cells)
    kinds = [task.kind for task in tasks.values()]
    assert {*kinds} == {"prepare", "calibrate", "train", "statistics", "edit"}
    Lake(run_paths.lake).show(address_of(cell) for cell in cells)
    assert {perform(task, run_paths, silent) for task in tasks.values()} == {"done"}
    assert {perform(task, run_paths, silent) for task in tasks.values()} == {FOUND}


def test_data_that_changed_since_the_plan_are_not_recorded_as_those_of_the_plan(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"The mayor of town {i} is", "target": f"Ann {i}"} for i in range(8)]
    file = tmp_path / "edits.json"
    file.write_text(json.dumps(rows))
    data = f"datasets=[{{name: mine, files: {{evaluation: {file}}}, world: {{n_subjects: 60}}}}]"
    small = "streams=[{n_batches: 2, batch_size: 2}]"
    (cell,) = cells_of(load_grid(GRID, ["editors=[{editor: none}]", data, small]))
    sent = pickle.dumps(tasks_of([cell]))
    planned = identity_of(cell)["dataset"]["data_hash"][:12]
    file.write_text(json.dumps([{**row, "target": "Bob"} for row in rows]))
    datasets._source.cache_clear()  # a worker is another process, and has read nothing
    tasks = pickle.loads(sent)
    run_paths = RunPaths.under(tmp_path)
    with pytest.raises(ConfigError, match=rf"dataset mine: .*planned {planned}.*{file.name}"):
        for task in tasks.values():
            perform(task, run_paths, silent)
    assert not Lake(run_paths.lake).rows()


def test_workers_get_absolute_paths_of_what_measurements_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a b\nc d\n" * 60)
    more = ["editors=[{editor: none}]", "measurements=[perplexity]", "eval_data.text=text.txt"]
    (cell,) = cells_of(load_grid(GRID, more))
    named = replace(cell.material, references="r.json", ability="items")
    for task in tasks_of([replace(cell, material=named)]).values():
        found = task.cell.material
        assert (found.text, found.references, found.ability) == tuple(
            str(tmp_path / name) for name in ("text.txt", "r.json", "items")
        )


def test_a_gang_has_found_its_work_done_where_all_its_ranks_have() -> None:
    gang: Any = object.__new__(_Together)
    for found in ([True, True], [True, False]):
        gang._outcomes = [Outcome(found=one) for one in found]
        assert gang._verdict().found == all(found)
    gang._outcomes = [Outcome(found=True), Outcome(reason="ValueError: no")]
    assert gang._verdict() == Outcome(reason="ValueError: no")


@pytest.mark.parametrize("found", [True, False])
def test_the_queue_passes_on_whether_a_task_was_found_done(found: bool) -> None:
    tasks = tasks_of(cells_of(load_grid(GRID, ["editors=[{editor: none}]"])))
    queue = Queue(tasks, retries=0)
    (first,) = queue.ready()
    queue.take(first)
    (ended,) = queue.done(first, found)
    assert ended == Finished(task=first, reason=None, found=found)
