"""The whole job by every contender at a very small size: they do the same. No timings."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.config.parse import parse_grid
from pipeline.config.yaml_location import Located
from pipeline.plan.cells import cells_of
from tests.benchmarks import command
from tests.benchmarks.process_cpu import Spent, spent_by
from tests.benchmarks.release import material as material_module
from tests.benchmarks.release import run as run_module
from tests.benchmarks.release import sharing, tasks
from tests.benchmarks.release.contenders import PARTS, Job, Library, ReleaseShaped, WarmLibrary
from tests.benchmarks.release.floor import PassesOwed
from tests.benchmarks.release.lockstep import Piece, in_turn
from tests.benchmarks.release.material import Material, real_rows, tiny_world
from tests.benchmarks.release.pipeline_job import Done, final_scores, grid_of
from tests.benchmarks.release.run import figures, run_release_shaped
from tests.benchmarks.release.setting import SIZES, JobSize, ReleaseBenchmark
from tests.benchmarks.report import lines

SIZE = JobSize(
    modules=("gate:1", "up:1"), batch_size=4, train_batches=2, stream_batches=2, depth=2, rank=4,
    step=1e-2,
)  # fmt: skip
RUN = ("--preset", "release-shaped", "--device", "cpu")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Material]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material_module, "SUBJECTS", 60)
        yield tiny_world(tmp_path_factory.mktemp("world"), 8, 8)


@pytest.mark.long
def test_all_contenders_do_the_same_job(given: Material, tmp_path: Path) -> None:
    torch.manual_seed(0)
    warm = WarmLibrary(given, SIZE, tmp_path / "store")
    warm.prepare()
    reference, cold = ReleaseShaped(given, SIZE), Library(given, SIZE)
    seconds = in_turn([reference, cold, warm, PassesOwed(given, SIZE)], PARTS)
    assert set(reference.scores()) == {"edit", "equivalent", "unrelated"}
    for other in (cold, warm):
        assert other.scores() == pytest.approx(reference.scores(), abs=1e-4)
        # The store held every prompt, so that the warm one ran no prompt through the lower layer.
    assert warm.model.prefix_cache.misses == 0 < cold.model.prefix_cache.misses
    one = {"reference": 2.0, "ours": 1.0}
    found = figures(seconds, one, {"cold": 50.0, "warm": 40.0})
    assert all(value > 0 for value in found["times"].values())
    weights = {
        name: (cold.model.weights.read(name), reference.editor.model.get_submodule(name).weight)
        for name in cold.model.modules
    }
    for ours, theirs in weights.values():  # after UltraEdit's stream, too
        assert torch.allclose(ours, theirs.detach(), atol=1e-5)


def test_the_pipelines_cell_is_the_same_job(given: Material) -> None:
    grid = parse_grid(Located.of_data(grid_of(given, SIZE), "grid"))
    (cell,) = cells_of(grid)
    assert cell.settings == SIZE.ours
    train, stream = given.edits()
    source = cell.source()
    drawn = source.draw("evaluation", 8, seed=cell.seed), source.draw("train", 8, seed=3)
    for found, expected in zip(drawn, (stream, train), strict=True):
        assert [e.prompt for e in found] == [e.prompt for e in expected]
        assert [e.locality for e in found] == [e.locality for e in expected]


def test_the_pipelines_tasks_give_the_librarys_scores(given: Material, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump(grid_of(given, SIZE)))
    tasks.main(grid, tmp_path / "results", str(tmp_path / "cache"))
    library = Library(given, SIZE)
    in_turn([library], PARTS[:-1])
    assert final_scores(tmp_path / "results") == pytest.approx(library.scores(), abs=1e-9)
    assert {"trained", "unedited"} <= {entry.name for entry in (tmp_path / "cache").iterdir()}


def test_figures_add_up_what_each_has_done() -> None:
    parts = {"load": 1.0, "trajectory": 8.0, "edit": 2.0, "evaluate": 3.0, "free": 2.0}
    ours = {"load": 1.0, "trajectory": 4.0, "before": 1.0, "edit": 1.0, "evaluate": 1.0}
    owed = {
        "trajectory, prefixes": 1.0, "trajectory": 2.0, "before, prefixes": 0.5, "before": 0.25,
        "before, rows": 0.75, "edit": 0.5, "evaluate": 0.75,
    }  # fmt: skip
    seconds: dict[str, dict[str, list[float]]] = {
        name: {part: [value / 2, value / 2] for part, value in sums.items()}
        for name, sums in {
            "reference": parts,
            "cold": {**ours, "free": 1.0},
            "warm": {**ours, "trajectory": 2.0, "before": 0.0, "free": 0.5},
            "floor": owed,
        }.items()
    }
    found = figures(seconds, {"reference": 6.0, "ours": 2.0}, {"cold": 11.5, "warm": 6.5})
    assert found["times"] == {
        "trajectory": 2.0,
        "trajectory, later epoch": 4.0,
        "edit batch": 2.0,
        "training-free edit batch": 2.0,
        "training-free edit batch, prefixes at hand": 4.0,
        "evaluation, cold": 1.5,
        "evaluation, warm": 3.0,
        "whole job, library, cold": 2.0,
        "whole job, library, warm": 20 / 7,
        "whole job, pipeline, cold": 20 / 11.5,
        "whole job, pipeline, warm": 20 / 6.5,
    }
    del seconds["reference"]
    alone = figures(seconds, {"reference": 6.0, "ours": 2.0}, {"cold": 11.5, "warm": 6.5})
    assert "times" not in alone and "reference" not in alone["whole_seconds"]
    assert alone["over_floor"] == found["over_floor"]
    assert found["times_of_the_floor"] == {"evaluation, cold": 2.0, "evaluation, warm": 4.0}
    assert found["over_floor"] == {
        "library, cold": 2.0,
        "library, warm": 7 / 3.25,
        "pipeline, cold": 2.0,  # it owes the rows of the time before the first edit as well
        "pipeline, warm": 2.0,
    }


class _Told(Job):
    """Says when its pieces run."""

    def __init__(self, name: str, count: int, told: list[str]) -> None:
        self.name, self._count, self._told = name, count, told

    def part(self, name: str) -> list[Piece]:
        return [Piece(name, lambda: self._told.append(self.name)) for _ in range(self._count)]


def test_pieces_of_a_part_are_spread_over_it() -> None:
    told: list[str] = []
    seconds = in_turn([_Told("a", 4, told), _Told("b", 2, told), _Told("c", 1, told)], ["x", "y"])
    assert told == ["a", "b", "a", "c", "a", "b", "a"] * 2
    assert {name: len(s["y"]) for name, s in seconds.items()} == {"a": 4, "b": 2, "c": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="adoption of orphans is Linux's")
def test_a_process_whose_parent_has_ended_is_counted(tmp_path: Path) -> None:
    told = tmp_path / "told"
    burn = (
        "import pathlib, time\nwhile time.process_time() < 0.5: pass\n"
        f"pathlib.Path({str(told)!r}).touch(); time.sleep(60)"
    )
    orphan = (
        "import subprocess, sys; "
        f"p = subprocess.Popen([sys.executable, '-c', {burn!r}], stdout=subprocess.DEVNULL); "
        "print(p.pid, flush=True)"
    )
    wait = (
        f"import pathlib, subprocess, sys, time; "
        f"p = subprocess.run([sys.executable, '-c', {orphan!r}], stdout=subprocess.PIPE)\n"
        f"while not pathlib.Path({str(told)!r}).exists(): time.sleep(0.1)\n"
        "time.sleep(1); import os; os.kill(int(p.stdout), 9); print('ended')"
    )
    spent = spent_by(["-c", wait], os.environ)
    assert spent.output.strip() == "ended"
    assert spent.by_process["driver"] < 0.4
    assert spent.cpu_seconds - spent.by_process["driver"] > 0.4


def test_a_command_that_fails_says_what_it_wrote() -> None:
    with pytest.raises(RuntimeError, match="ended with 1.*no such model"):
        spent_by(["-c", "raise SystemExit('no such model')"], os.environ)


def test_rows_without_probes_are_not_drawn(given: Material, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = json.loads(given.train.read_text())
    for row in rows[:4]:
        del row["locality"]
    file = tmp_path / "few.json"
    file.write_text(json.dumps(rows))
    drawn = real_rows(tmp_path / "a", given.model, (given.stream, file), 4, 4)
    assert {e.prompt for e in drawn.edits()[1]} == {row["prompt"] for row in rows[4:]}
    with pytest.raises(ValueError, match=r"few\.json: 5 edits with a rephrase .* it has 4"):
        real_rows(tmp_path / "b", given.model, (given.stream, file), 4, 5)
    with pytest.raises(ValueError, match="0 that the other file has not"):
        real_rows(tmp_path / "c", given.model, (file, file), 4, 4)


def test_without_rows_the_real_model_is_left_out() -> None:
    setting = ReleaseBenchmark(configurations={"smollm2": SIZES["smollm2"]})
    found = run_release_shaped(setting, torch.device("cpu"), "cpu")
    assert found["jobs"] == {
        "smollm2": {"left_out": "name two files of edits, --rows TRAIN EVALUATION"}
    }


@pytest.mark.long
def test_the_preset_writes_the_figures_of_the_tiny_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pipeline(_: Material, size: JobSize, __: Path) -> dict[str, Done]:
        spent = Spent(cpu_seconds=20.0, by_process={"driver": 20.0}, output="")
        scores = {"edit": 1.0 * size.stream_batches}
        return {name: Done(spent=spent, scores=scores) for name in ("cold", "warm")}

    monkeypatch.setattr(material_module, "SUBJECTS", 60)
    monkeypatch.setattr(run_module, "by_pipeline", pipeline)
    monkeypatch.setattr(run_module, "_import_seconds", lambda _: 1.0)
    file = tmp_path / "figures.json"
    sizes = ["--repeats", "1", "--edits", "4", "--train-batches", "1", "--stream-batches", "2"]
    places = ["--configurations", "tiny", "--json", str(file), "--clock", "cpu"]
    shown = command.run([*RUN, *sizes, *places, "--threads", str(torch.get_num_threads())])
    assert "over_floor" in "\n".join(lines(shown))
    found = json.loads(file.read_text())["jobs"]["tiny"]
    assert found["sizes"]["batch_size"] == 4
    assert found["whole_seconds"]["pipeline, cold"] == 20.0
    assert found["seconds"]["cold"]["import"] == 1.0
    assert found["scores"]["pipeline, warm"] == {"edit": 2.0}
    assert found["scores"]["warm"] == pytest.approx(found["scores"]["reference"], abs=1e-4)
    whole = found["whole_seconds"]
    owed = whole["floor, warm"]
    assert found["over_floor"]["library, warm"] == pytest.approx(whole["library, warm"] / owed)


def test_wall_time_of_a_job_is_refused() -> None:
    with pytest.raises(ValueError, match="--device cpu --clock cpu --threads 1"):
        command.run([*RUN, "--threads", str(torch.get_num_threads())])


def test_the_command_gives_the_job_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[JobSize, ReleaseBenchmark]] = []

    def run(setting: ReleaseBenchmark, *_: object) -> dict[str, Any]:
        seen.append((setting.size("smollm2"), setting))
        return {}

    monkeypatch.setitem(command.RUNNERS, ReleaseBenchmark, run)
    sizes = ["--repeats", "4", "--edits", "3", "--train-batches", "6", "--stream-batches", "7"]
    places = ["--model", "folder", "--rows", "a.json", "b.json", "--without-pipeline"]
    threads = ["--threads", str(torch.get_num_threads())]
    command.run([*RUN, *sizes, *places, *threads, "--configurations", "smollm2"])
    ((size, setting),) = seen
    assert (size.repeats, size.batch_size) == (4, 3)
    assert (size.train_batches, size.stream_batches) == (6, 7)
    assert setting.model == Path("folder")
    assert setting.rows == (Path("a.json"), Path("b.json"))
    assert list(setting.configurations) == ["smollm2"]
    assert not setting.pipeline


@pytest.mark.long
def test_cells_that_share_give_the_rows_that_they_give_alone(
    given: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here in one process; the command runs each in a process of its own."""
    runs: list[str] = []

    def run(arguments: list[str], _: object) -> Spent:
        runs.append(arguments[2])
        tasks.main(Path(arguments[2]), Path(arguments[3]), arguments[4])
        return Spent(cpu_seconds=2.0, by_process={}, output="")

    monkeypatch.setattr(sharing, "spent_by", run)
    six = sharing.editors_of(SIZE)
    assert len({(e["editor"], e.get("variant")) for e in six}) == 6
    monkeypatch.setattr(sharing, "editors_of", lambda _: [six[0], six[4]])
    found = sharing.compare(given, replace(SIZE, batch_size=2), tmp_path)
    assert len(runs) == 9
    assert found == {
        "cells": 8,
        "together_seconds": 2.0,
        "apart_seconds": 16.0,
        "times_less": 8.0,
        "rows_equal": True,
        "renamed_runs": 0,
    }
    other = sharing.rows_of(tmp_path / "apart-0")
    assert len(other) == 1
    assert next(iter(other.values()))["edits"]["efficacy"]
