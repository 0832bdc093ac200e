"""What a grid will cost: hours, memory, disk, downloads; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.architecture import architecture_of
from pipeline.cells import Cell, cells_of
from pipeline.cli import app
from pipeline.config import load_grid
from pipeline.estimate import absent_files, estimate
from pipeline.estimate.device import Placement, gpu
from pipeline.estimate.fit import misfit, smallest_fit
from pipeline.estimate.measured import Measurements
from pipeline.estimate.memory import memory_of
from pipeline.estimate.seconds import modelled
from pipeline.estimate.summary import aligned, duration
from pipeline.estimate.workload import Workload, workload_of
from pipeline.presets import PRESETS
from pipeline.results.lake import Lake
from pipeline.results.records import CellRecord
from pipeline.run.cell import record_failure
from tests.unit.lake_fixtures import cell as finished
from tests.unit.test_checkpoints import folder, untrained

GRIDS = Path(__file__).parents[2] / "jobs" / "grids"
TINY = Path(__file__).parent.parent / "cluster" / "tiny.yaml"
ON_80 = Placement(device=gpu(80))

__all__ = ["folder", "untrained"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Presets, not the hub."""
    from pipeline.checkpoints import hub_reachable

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    hub_reachable.cache_clear()


def table2(editor: str, model: str = "Llama-3-8B", *more: str) -> Workload:
    cells = cells_of(load_grid(GRIDS / "table2.yaml", more))
    found = next(c for c in cells if c.label == editor and c.model.name == model)
    return workload_of(found, readable=False)


@pytest.mark.parametrize("name", PRESETS)
def test_the_modules_counted_are_the_presets_own(name: str) -> None:
    """Two independent counts: of the classes' modules, and by the preset's formula."""
    cell = cells_of(load_grid(GRIDS / "table2.yaml", [f"models.Llama-3-8B.preset={name}"]))[0]
    architecture, shape = architecture_of(cell), PRESETS[name].shape
    assert architecture.parameters == shape.parameters
    assert architecture.layer_parameters == shape.layer_parameters
    assert (architecture.hidden, architecture.intermediate) == (shape.hidden, shape.intermediate)


def test_memory_part_by_part() -> None:
    work = table2("rledit")
    parts = memory_of(work, ON_80).parts
    assert parts["weights"] == 2 * 8_030_261_248
    matrix = 4096 * 14336
    modules = len(work.linears)
    assert parts["edited matrices"] == modules * matrix * (2 + 4)
    width, rank = 4096 + 14336, work.cell.settings.rank
    block = 2 * width * rank + width + 2 * modules * width
    assert parts["hypernetwork"] == 4 * 4 * work.cell.settings.n_blocks * block
    sharded = memory_of(work, replace(ON_80, sharded=True, ranks=4)).parts
    assert sharded["weights"] == parts["weights"] / 4
    assert sharded["edited matrices"] == parts["edited matrices"]


def test_a_deeper_window_and_more_layers_cost_more() -> None:
    shallow = table2("rledit", "Llama-3-8B", "editors.rledit.settings={depth: 1}")
    deep = table2("rledit")
    assert modelled(shallow, ON_80).setup < modelled(deep, ON_80).setup
    assert memory_of(shallow, ON_80).gigabytes < memory_of(deep, ON_80).gigabytes
    late = table2("rledit", "Llama-3-8B", "editors.rledit.settings={modules: ['down:31']}")
    assert modelled(late, ON_80).edit < modelled(deep, ON_80).edit


def test_published_costs_are_of_the_right_order() -> None:
    """0.145 s of training and 0.028 s of editing per edit on an A100 (arXiv 2502.05759)."""
    seconds = modelled(table2("rledit"), ON_80)
    assert 0.01 < seconds.setup / 8000 < 0.3
    assert 0.002 < seconds.edit / 8000 < 0.06
    assert modelled(table2("memit"), ON_80).edit > 10 * seconds.edit


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    work = table2("memit", "Mistral-7B-v0.3")
    small = Placement(device=gpu(24))
    found = misfit(work, small, memory_of(work, small))
    assert found is not None and found.part == "weights"
    other = smallest_fit(work, small)
    assert other is not None and memory_of(work, other).gigabytes <= 24
    assert f"--set 'resources={{gpus: 1, ranks: {other.ranks}, sharding: zero3" in found.remedy
    tuned = table2("ft", "Gemma-2-9B")
    whole = misfit(tuned, small, memory_of(tuned, small))
    assert whole is not None and "cannot be sharded: take GPUs of at least" in whole.remedy
    assert misfit(work, ON_80, memory_of(work, ON_80)) is None
    tiny = Placement(device=gpu(4))
    hopeless = misfit(work, tiny, memory_of(work, tiny))
    assert hopeless is not None and "sharding does not help" in hopeless.remedy


def _records(lake: Lake) -> list[CellRecord]:
    return lake.manifest()


def test_finished_cells_cost_what_they_cost(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(finished(editor="ultraedit", grid="other", model="llama-tiny", batch_size=4,
                         n_batches=8))  # fmt: skip
    lake.commit(finished(editor="ft", grid="other", model="llama-tiny"))
    cells = cells_of(load_grid(TINY))
    measurements = Measurements(_records(lake))
    ultra = next(c for c in cells if c.label == "ultraedit")
    found = measurements.seconds(ultra)
    assert found is not None and found.measured
    assert found.edit == pytest.approx(1.5 * ultra.n_edits / 1000)
    assert found.score == pytest.approx(0.5 / 32 * ultra.n_edits)
    assert measurements.peak_gb(ultra) == 0.75
    rledit = next(c for c in cells if c.label == "rledit")
    assert measurements.seconds(rledit) is None
    costs = {c.work.cell.label: c for c in estimate(cells, _records(lake)).cells}
    assert costs["ultraedit"].seconds.measured and not costs["rledit"].seconds.measured


def test_a_network_is_trained_once_for_all_who_share_it() -> None:
    editors = "editors=[{editor: rledit, settings: {trajectory_batches: 2, train_steps: 5}}]"
    streams = "streams=[{n_batches: 2, batch_size: 4}, {n_batches: 3, batch_size: 4}]"
    cells = cells_of(load_grid(TINY, [editors, streams]))
    setups = [c.seconds.setup for c in estimate(cells, []).cells]
    assert setups[0] > 0 and setups[1] == 0


def test_files_that_are_not_there_do_not_hide_the_rest() -> None:
    cells = cells_of(load_grid(GRIDS / "table2.yaml"))
    assert "data/zsre_eval.json" in absent_files(cells)
    found = estimate(cells[:3], [])
    assert not found.ready and found.hours > 0
    text = "\n".join(need.text for need in found.needs)
    assert "data/fever_train.json is not there" in text
    assert "gated; accept its terms at https://huggingface.co/meta-llama/" in text


def test_only_local_files_can_be_seen_to_be_absent(tmp_path: Path) -> None:
    """A pinned file is looked for without its pin; a store or a hub is asked when it is opened."""
    here = tmp_path / "zsre.json"
    here.write_text("[]")
    pin = f"#sha256={'0' * 64}"
    files = {
        "train": f"{here}{pin}",
        "validation": f"{tmp_path / 'gone.json'}{pin}",
        "evaluation": "hf://datasets/owner/name@abc/zsre_eval.json",
    }
    one = f"datasets=[{{name: ZsRE, schema: zsre, files: {json.dumps(files)}}}]"
    cells = cells_of(load_grid(GRIDS / "table2.yaml", [one]))
    assert absent_files(cells) == [files["validation"], "data/wikipedia.jsonl"]


def test_absent_material_of_measurements_is_named_and_not_opened(tmp_path: Path) -> None:
    cells = cells_of(load_grid(GRIDS / "protocols.yaml"))
    absent = absent_files(cells)
    assert {"data/attribute_snippets.json", "data/ability/rte.jsonl"} <= set(absent)
    code, text = run(GRIDS / "protocols.yaml", "--results", tmp_path, "--no-cells")
    assert code == 1 and "MISSING: data: data/ability/rte.jsonl is not there" in text


@pytest.mark.parametrize(
    "change",
    [
        "protocols=[token_accuracy, generation_contains]",
        "measurements=[perplexity]",
        "measurements=[fluency]",
        "measurements=[ability]",
    ],
)
def test_what_is_measured_beside_token_accuracy_costs_time(change: str) -> None:
    ability = "material={ability: data/ability, text: data/text.txt}"
    plain, more = table2("rledit"), table2("rledit", "Llama-3-8B", change, ability)
    assert modelled(more, ON_80).score > 1.01 * modelled(plain, ON_80).score
    assert modelled(more, ON_80).edit == modelled(plain, ON_80).edit


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    return done.exit_code, done.output + str(done.exception or "")


def test_table_2_with_a_model_of_my_own_on_two_gpus(folder: Path, tmp_path: Path) -> None:
    """The dry run of the README: a folder with a configuration is enough."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
               "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
               "head_dim": 128}  # fmt: skip
    mine = tmp_path / "my-8b"
    mine.mkdir()
    (mine / "config.json").write_text(json.dumps(config))
    entry = f"{{name: mine, preset: llama-3-8b, checkpoint: {mine}, dtype: bfloat16}}"
    code, text = run(
        GRIDS / "table2.yaml", "--results", tmp_path, "--no-cells",
        "--set", f"models=[{entry}]",
        "--set", "resources={gpus: 1, ranks: 2}",
    )  # fmt: skip
    assert code == 1  # no weights and no data yet
    assert "mine: llama, 8,030 M parameters" in text and "sizes: config.json" in text
    assert f"MISSING: mine: {mine} has no weights; 16.1 GB are needed" in text
    assert "each cell on 2 ranks" in text
    assert "24 cells, 24 to run" in text
    assert "DOES NOT FIT" not in text


def test_an_editor_that_cannot_be_sharded_is_named(tmp_path: Path) -> None:
    """Even where the data is not there yet."""
    code, text = run(GRIDS / "table2.yaml", "--results", tmp_path, "--set",
                     "resources={gpus: 1, ranks: 2, sharding: zero3}")  # fmt: skip
    assert code == 1 and "table2/Llama-3-8B/FEVER/ft" in text


def test_the_command_refuses_by_its_exit_code(tmp_path: Path) -> None:
    code, text = run(GRIDS / "table2.yaml", "--results", tmp_path, "--gpu-memory-gb", "16")
    assert code == 1
    assert "DOES NOT FIT: Llama-3-8B × " in text and "sharding: zero3" in text
    code, text = run(TINY, "--results", tmp_path)
    assert code == 0, text
    assert "missing" in text and "4 cells, 4 to run" in text
    assert not [line for line in text.splitlines() if line.endswith("the lake")]
    like = finished(editor="ultraedit", grid="other", model="llama-tiny")
    Lake(str(tmp_path / "lake")).commit(like)
    _, measured = run(TINY, "--results", tmp_path)
    (line,) = [line for line in measured.splitlines() if line.endswith("the lake")]
    assert line.split()[0] == "ultraedit"
    assert "needs: llama-tiny: trained on the spot" in text


def test_a_cell_that_failed_says_why(tmp_path: Path) -> None:
    cell: Cell = cells_of(load_grid(TINY))[0]
    record_failure(cell, Lake(str(tmp_path / "lake")), "ValueError: too warm")
    _, text = run(TINY, "--results", tmp_path)
    assert "(ValueError: too warm)" in text


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (0, 0.06, 3, 59, 90, 7200, 90_000)] == [
        "0", "0.1 s", "3.0 s", "59 s", "1.5 min", "2.0 h", "25 h"
    ]  # fmt: skip
    assert aligned([("a", "bb"), ("ccc", "d")]) == ["  a    bb", "  ccc   d"]
