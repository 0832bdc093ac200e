"""Second moments as a stage: shards add up, interruptions leave no trace, strangers are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.cells import Cell, cells_of
from pipeline.config import load_grid
from pipeline.corpus import open_corpus
from pipeline.run.report import Stage, silent
from pipeline.run.stages import statistics
from pipeline.run.stages.prepare import prepare_model
from pipeline.run.state import write_tensors
from pipeline.run.tasks import tasks_of
from pipeline.yaml_location import ConfigError
from rledit.locate.statistics import StatisticsError

GRID = Path(__file__).parent.parent / "cluster" / "tiny.yaml"
EDITOR = "editors=[{editor: memit}]"


def cell(**entry: object) -> Cell:
    settings = ", ".join(f"{k}: {v}" for k, v in {"documents": 300, **entry}.items())
    return cells_of(load_grid(GRID, [EDITOR, f"statistics={{{settings}}}"]))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_model(cell(), tmp_path_factory.mktemp("models"), silent)


def collected(chosen: Cell, folder: Path, cache: Path) -> dict[str, torch.Tensor]:
    for shard in range(chosen.statistics.shards):
        statistics.collect(chosen, shard, folder, cache, silent)
    found = statistics.load_statistics(chosen, folder, cache)
    return {name: moment.mean() for name, moment in found.items()}


def test_two_workers_add_up_to_one(folder: Path, tmp_path: Path) -> None:
    one = collected(cell(dtype="float64"), folder, tmp_path)
    two = collected(cell(dtype="float64", shards=2), folder, tmp_path)
    assert one.keys() == two.keys() == {f"model.layers.{i}.mlp.down_proj" for i in range(2)}
    for name in one:
        assert (one[name] - two[name]).norm() <= 1e-10 * one[name].norm()
        assert one[name].norm() > 0


def test_an_interrupted_sum_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "SAVE_EVERY_SECONDS", 0.0)

    def stop(_: Stage, done: int, __: int) -> None:
        if done >= 2 * statistics.DOCUMENTS_PER_PASS:
            raise InterruptedError

    straight = collected(cell(), folder, tmp_path / "a")
    with pytest.raises(InterruptedError):
        statistics.collect(cell(), 0, folder, tmp_path / "b", stop)
    resumed = collected(cell(), folder, tmp_path / "b")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_file_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    chosen = cell()
    statistics.collect(chosen, 0, folder, tmp_path, silent)
    path = next(statistics.statistics_folder(chosen, tmp_path).glob("*.safetensors"))
    identity = statistics.moment_identities(chosen, folder)[path.name.split(".shard")[0]]
    strange = {
        "model_hash": "llama-0000",
        "module": identity.module,
        "corpus_hash": identity.corpus_hash,
        "dtype": identity.dtype,
        "count": "1",
    }
    write_tensors(path, load_file(path), strange)
    with pytest.raises(StatisticsError, match=f"llama-0000.*{folder.name}"):
        statistics.load_statistics(chosen, folder, tmp_path)


def test_editors_that_need_the_same_moments_share_them() -> None:
    grid = load_grid(
        GRID,
        [
            "editors=[{editor: memit}, {editor: memit, variant: b, settings: {value_lr: 0.2}}]",
            "statistics={shards: 2, documents: 300}",
        ],
    )
    tasks = tasks_of(cells_of(grid)).values()
    assert sum(t.kind == "statistics" for t in tasks) == 2
    assert all(len(t.needs) == 3 for t in tasks if t.kind == "edit")


def test_a_corpus_file_names_its_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n\n{"txt": "b"}\n')
    assert open_corpus(str(path), 1, None).documents == ("a",)
    with pytest.raises(ConfigError, match=r"c.jsonl:3: expected a JSON object with the key 'text'"):
        open_corpus(str(path), 5, None)
    with pytest.raises(ConfigError, match="without an embedded world"):
        open_corpus(None, 5, None)
    with pytest.raises(ConfigError, match="pinned revision"):
        open_corpus("hf://datasets/owner/name/file.txt", 5, None)
