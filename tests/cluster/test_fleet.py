"""The fleet: gangs give the rows of one process, dead workers are replaced, object stores work.

One Ray for all tests: it takes longer to start than any of the work.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cache_names import trained_name
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.lake import Lake
from pipeline.run.cache import LOCAL_FOLDER, Cache
from pipeline.run.fleet.fleet import local_fleet, require_room, run_tasks
from pipeline.run.fleet.progress import Progress
from pipeline.run.reporting import Stage, silent
from pipeline.run.stages import edit
from pipeline.run.stages.prepare import prepare_model
from pipeline.run.tasks import perform, tasks_of
from pipeline.storage.run_paths import RunPaths
from tests.cluster.s3 import s3_bucket
from tests.unit.helpers.oracle import relative

pytestmark = pytest.mark.cluster

GRID = Path(__file__).with_name("tiny.yaml")
EDITORS = (
    "editors=[{editor: ultraedit, settings: {step: 1.0e-3}}, {editor: rledit, settings: {rank: 8, "
    "n_blocks: 1, init_std: 0.05, initial_step: 1.0e-3, meta_lr: 1.0e-3, train_steps: 2}}]"
)
LONG = (
    "editors=[{editor: rledit, settings: {rank: 8, n_blocks: 1, init_std: 0.05, "
    "initial_step: 1.0e-3, meta_lr: 1.0e-3, train_steps: 25}}]"
)
FAMILIES = ["llama", "mistral", "gptj"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run left behind.

    Attributes:
        rows: Rows of every cell and table, times aside, by editor.
        networks: Trained networks, by editor.
        execution: How each cell was run, by editor.
    """

    rows: dict[str, dict[str, list[Mapping[str, Any]]]]
    networks: dict[str, dict[str, torch.Tensor]]
    execution: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket that this process and the fleet's workers can reach."""
    with s3_bucket() as uri:
        yield uri


@pytest.fixture(scope="module")
def fleet(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOCAL_FOLDER, str(tmp_path_factory.mktemp("node")))
        with local_fleet(2):
            yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of nothing but models, for all runs."""
    return tmp_path_factory.mktemp("models")


def cells(*changes: str) -> list[Cell]:
    return cells_of(load_grid(GRID, [EDITORS, "streams=[{n_batches: 3, batch_size: 4}]", *changes]))


def places(folder: Path, models: Path, chosen: list[Cell]) -> RunPaths:
    """Locations below a folder; the models of the cells lie in its cache already."""
    cache = Cache(folder / "cache")
    cache.folder.mkdir(parents=True)
    for cell in chosen:
        made = prepare_model(cell, Cache(models), silent)
        if cell.model.checkpoint is None and not (cache.folder / "models").exists():
            (cache.folder / "models").symlink_to(made.parent)
    return RunPaths(lake=str(folder / "lake"), cache=str(folder / "cache"), tracking="")


def left_by(chosen: list[Cell], run_paths: RunPaths) -> Run:
    lake, cache = Lake(run_paths.lake), Cache(run_paths.cache)
    found = Run(rows={}, networks={}, execution={})
    for cell in chosen:
        record = lake.record(key_of(cell))
        assert record is not None and record.done, record
        result = lake.result(record, tables=("edits", "scores", "steps"))
        tables: dict[str, Any] = {"edits": result.edits, "scores": result.scores}
        tables["steps"] = result.steps
        found.rows[cell.label] = {
            name: [dict(zip(t, row, strict=True)) for row in zip(*t.values(), strict=True)]
            for name, t in tables.items()
        }
        found.execution[cell.label] = dict(record.values["resolved"]["execution"])
        if cell.trains:
            path = cache.file(trained_name(cell))
            assert path is not None
            found.networks[cell.label] = load_file(path)
        assert record.values["ranks"] == cell.resources.ranks
    assert cache.storage.list("leases") == cache.storage.list("states") == []
    return found


def alone(chosen: list[Cell], run_paths: RunPaths) -> Run:
    """In this process."""
    for task in tasks_of(chosen).values():
        perform(task, run_paths, silent)
    return left_by(chosen, run_paths)


def together(chosen: list[Cell], run_paths: RunPaths, progress: Any = lambda _: None) -> Run:
    """On the fleet, with nothing left running."""
    reasons = [f.reason for f in run_tasks(tasks_of(chosen), run_paths, progress) if f.reason]
    assert not reasons
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 2, "a gang holds cores after its end"
    return left_by(chosen, run_paths)


def same(found: Run, expected: Run, tolerance: float) -> None:
    """Discrete scores are equal, everything else to a relative tolerance."""
    for label, network in expected.networks.items():
        errors = [relative(found.networks[label][k], v) for k, v in network.items()]
        assert max(errors) < tolerance
    for label, tables in expected.rows.items():
        assert found.rows[label]["edits"] == tables["edits"]
        assert found.rows[label]["scores"] == tables["scores"]
        ours, theirs = (
            {
                (row["step"], row["metric"]): row["value"]
                for row in rows["steps"]
                if not row["metric"].endswith("_seconds")
            }
            for rows in (found.rows[label], tables)
        )
        assert ours.keys() == theirs.keys()
        for place, value in theirs.items():
            # A divergence of nearly equal distributions is what their round-off leaves.
            close = pytest.approx(value, rel=tolerance, abs=tolerance / 10)
            assert ours[place] == close, f"{label}: {place}"


def test_a_local_fleet_runs_no_process_that_only_a_cluster_uses(fleet: None) -> None:
    started = psutil.Process().children(recursive=True)
    commands = [" ".join(process.cmdline()) for process in started]
    assert any("gcs_server" in command for command in commands)
    for program in ("dashboard/dashboard.py", "monitor.py"):
        assert not [command for command in commands if program in command]


def test_two_ranks_train_edit_and_score_like_one(fleet: None, models: Path, tmp_path: Path) -> None:
    """In float64, where the order of sums does not matter."""
    checkpoint = prepare_model(cells()[0], Cache(models), silent)
    double = f"models=[{{name: double, checkpoint: {checkpoint}, dtype: float64}}]"
    one, two = cells(double), cells(double, "resources={ranks: 2}")
    assert [key_of(c) for c in one] == [key_of(c) for c in two]
    expected = alone(one, places(tmp_path / "one", models, one))
    found = together(two, places(tmp_path / "two", models, two))
    same(found, expected, 1e-9)
    assert found.execution["rledit"]["ranks"] == 2


@pytest.mark.slow  # the fast tests of ZeRO-3 train, edit and score below the fleet
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_sharded_over_two_ranks_trains_edits_and_scores_like_a_whole_one(
    family: str, fleet: None, models: Path, tmp_path: Path
) -> None:
    sharded_like_whole(tmp_path, models, tiny_of(family), offload=family == "mistral")


@pytest.mark.slow
def test_statistics_and_value_vectors_of_a_sharded_model(
    fleet: None, models: Path, tmp_path: Path
) -> None:
    memit = "editors=[{editor: memit, settings: {value_steps: 4}}]"
    sharded_like_whole(tmp_path, models, tiny_of("llama"), memit, "statistics={documents: 100}")


def tiny_of(family: str) -> str:
    return f"models=[{{name: {family}, world_model: tiny, overrides: {{family: {family}}}}}]"


def sharded_like_whole(folder: Path, models: Path, *changes: str, offload: bool = False) -> None:
    resources = f"resources={{ranks: 2, sharding: zero3, offload: {str(offload).lower()}}}"
    one, two = cells(*changes), cells(*changes, resources)
    expected = alone(one, places(folder / "one", models, one))
    found = together(two, places(folder / "two", models, two))
    same(found, expected, 1e-5)
    for execution in found.execution.values():
        assert execution["held_share"] == pytest.approx([0.5, 0.5], abs=0.01)
        assert execution["offload"] == offload


def test_a_gang_whose_member_is_killed_is_tried_again(
    fleet: None, models: Path, tmp_path: Path
) -> None:
    one, two = cells(LONG), cells(LONG, "resources={ranks: 2}")
    killed: list[str] = []

    def kill_one(running: Mapping[str, Progress]) -> None:
        for key, progress in running.items():
            if not killed and progress.stage == "train" and progress.done > 0:
                killed.append(key)
                os.kill(progress.pid, signal.SIGKILL)

    expected = alone(one, places(tmp_path / "one", models, one))
    found = together(two, places(tmp_path / "two", models, two), kill_one)
    assert killed
    (reason,) = found.execution["rledit"]["interruptions"]
    assert reason.startswith("train rledit 3x4 seed 0: ") and "Died" in reason
    # Many steps of Adam carry the round-off of float32 on.
    same(found, expected, 1e-3)


@pytest.mark.slow
def test_a_state_of_one_rank_is_taken_up_by_two(
    fleet: None, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in a resume state depends on the number of ranks, or on how the model is held."""
    editor = "editors=[{editor: ultraedit, settings: {step: 1.0e-3}}]"
    one = cells(editor)
    expected = alone(one, places(tmp_path / "one", models, one))

    def stop(stage: Stage, done: int, total: int, *_: object) -> None:
        if stage == "edit" and done == 2:
            raise InterruptedError

    monkeypatch.setattr(edit, "SAVE_EVERY_SECONDS", 0.0)
    for resources in ("{ranks: 2}", "{ranks: 2, sharding: zero3}"):
        two = cells(editor, f"resources={resources}")
        there = places(tmp_path / resources, models, two)
        with pytest.raises(InterruptedError):
            for task in tasks_of(one).values():
                perform(task, there, stop)
        # That the state is taken up shows in the time it says it took.
        (pointer,) = Path(there.cache).glob("states/*/latest.json")
        state = json.loads(pointer.read_text())
        state["facts"]["rows"]["edit_seconds"] += 1000
        pointer.write_text(json.dumps(state))
        same(together(two, there), expected, 1e-5)
        record = Lake(there.lake).record(key_of(two[0]))
        assert record is not None and record.values["edit_seconds"] > 1000


def test_each_worker_keeps_to_its_model(fleet: None, models: Path, tmp_path: Path) -> None:
    """Two models, four seeds, two workers; in the order of the cells, models alternate."""
    noted = tmp_path / "noted"
    noted.mkdir()
    editor = (
        f"{{editor: 'tests.cluster.noting_editor:NotingEditor', settings: {{folder: {noted}}}}}"
    )
    other = "{name: other, world_model: tiny, overrides: {family: mistral}}"
    chosen = cells(
        f"editors=[{editor}]",
        f"models=[{{name: one, world_model: tiny}}, {other}]",
        "seeds=[0, 1, 2, 3]",
        "streams=[{n_batches: 1, batch_size: 2}]",
        "checkpoints=1",
    )
    assert len(chosen) == 8
    together(chosen, places(tmp_path / "run", models, chosen))
    # One each; one more where a worker that is free helps the other one with the last cells.
    assert 2 <= len(list(noted.iterdir())) <= 3


def test_lake_and_cache_in_an_object_store(
    bucket: str,
    fleet: None,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The workers have this process's model and network through the store, or not at all."""
    memit = "editors=[{editor: memit}, {editor: rledit, settings: {rank: 8, n_blocks: 1, "
    memit += "init_std: 0.05, initial_step: 1.0e-3, meta_lr: 1.0e-3, train_steps: 2}}]"
    chosen = cells(memit, "statistics={documents: 100, shards: 2}")
    expected = alone(chosen, places(tmp_path / "here", models, chosen))
    # This process is another node: its copies lie elsewhere.
    monkeypatch.setenv(LOCAL_FOLDER, str(tmp_path / "driver"))
    store = RunPaths(lake=f"{bucket}/lake", cache=f"{bucket}/cache", tracking="")
    prepare_model(chosen[0], Cache(store.cache), silent)
    found = together(chosen, store)
    assert found.rows.keys() == expected.rows.keys() == {"memit", "rledit"}
    same(found, expected, 1e-6)
    names = Cache(store.cache).storage.list()
    assert sum(n.startswith("statistics/") for n in names) == 2 * 2
    assert sum(n.startswith("trained/") for n in names) == 1
    lake = Lake(store.lake)
    assert [lake.verify(key_of(c)) for c in chosen] == [[], []]


def test_a_task_larger_than_this_ray_is_refused(fleet: None) -> None:
    with pytest.raises(ConfigError, match="needs 3 CPU, and there are 2 here"):
        require_room(tasks_of(cells("resources={ranks: 3}")))
    with pytest.raises(ConfigError, match="needs 2 GPU"):
        require_room(tasks_of(cells("resources={ranks: 2, gpus: 1}")))


def test_nothing_listens_beyond_loopback(fleet: None) -> None:
    own = psutil.Process()
    listening = [
        (process.name(), connection.laddr.ip)
        for process in [own, *own.children(recursive=True)]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
