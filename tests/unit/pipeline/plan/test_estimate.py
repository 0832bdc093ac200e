"""Estimates of a grid: hours, memory, disk, downloads; and what is refused."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.config.presets import PRESETS
from pipeline.errors import ConfigError
from pipeline.plan.architecture import architecture_of
from pipeline.plan.cache_names import covariance_folder, shard_file
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.checks import check_corpus
from pipeline.plan.estimate import absent_files, estimate
from pipeline.plan.estimate.memory import (
    Placement,
    core,
    gpu,
    memory_of,
    out_of_memory,
    smallest_fit,
)
from pipeline.plan.estimate.needs import disk_gb
from pipeline.plan.estimate.seconds import modelled, statistics_seconds
from pipeline.plan.estimate.summary import aligned, duration, remedies
from pipeline.plan.estimate.workload import Workload, workload_of
from pipeline.plan.prefixes import StoreChoice, store_choice, training_store_choice
from pipeline.results.lake.lake import Lake
from pipeline.run.cell import record_failure
from rledit.locate.output_gradients import gradients_of
from rledit.world import World, WorldConfig, render_schema
from tests.unit.helpers.lake_fixtures import cell as finished

GRIDS = Path(__file__).parents[4] / "jobs" / "grids"
TINY = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
ON_80 = Placement(device=gpu(80))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Presets, not the hub."""
    from pipeline.inputs.checkpoints import hub_reachable

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
    modules = len(work.target_modules)
    assert parts["edited matrices"] == modules * matrix * (2 + 4)
    width, rank = 4096 + 14336, work.cell.settings.rank
    block = 2 * width * rank + width + 2 * modules * width
    assert parts["hypernetwork"] == 4 * 4 * work.cell.settings.n_blocks * block
    sharded = memory_of(work, replace(ON_80, sharded=True, ranks=4)).parts
    embedding = 2 * 128256 * 4096
    assert sharded["weights"] == parts["weights"] / 4  # a slice of the output embedding as well
    assert sharded["edited matrices"] == parts["edited matrices"]
    assert sharded["output embedding"] == embedding
    assert sharded["gathered layers"] == 2 * embedding  # of the input, larger than a layer
    tied = table2("rledit", "Llama-3-8B", "models.Llama-3-8B.preset=gemma-2-9b")
    assert tied.architecture.tied and not work.architecture.tied
    there = memory_of(tied, replace(ON_80, sharded=True, ranks=4)).parts
    # One matrix, which lies whole on every rank and is never gathered.
    assert there["output embedding"] == 2 * 256000 * 3584
    assert there["gathered layers"] == 4 * tied.architecture.layer_parameters


def test_keys_of_earlier_batches_are_counted_in_memory_and_in_states() -> None:
    with_keys = table2("rledit", "Llama-3-8B", "editors.rledit.settings.past_keys=1")
    without = table2("rledit")
    assert "past keys" not in memory_of(without, ON_80).parts
    products = 8 * sum(d_in**2 for d_in, _ in with_keys.target_modules.values())
    assert memory_of(with_keys, ON_80).parts["past keys"] == 3 * products
    name = "resume state of a running cell (at most)"
    more = disk_gb([with_keys])[name] - disk_gb([without])[name]
    assert more == pytest.approx(products / 1e9)


def test_what_sequential_methods_keep_of_past_edits_is_counted() -> None:
    """Llama-3's five layers: past keys in float64 and outputs, a projection beside both."""
    only = "editors=[{editor: memit}, {editor: lyaplock}, {editor: betaedit}]"
    memit, lyaplock, betaedit = (
        memory_of(table2(name, "Llama-3-8B", only), ON_80).parts["past edits"]
        for name in ("memit", "lyaplock", "betaedit")
    )
    square = 14336 * 14336
    assert memit == 0
    assert lyaplock == 5 * (4 * square + 8 * 14336 * 4096)
    assert betaedit == 5 * 4 * square


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
    found = out_of_memory(work, small, memory_of(work, small))
    assert found is not None and found.part == "weights"
    assert out_of_memory(work, ON_80, memory_of(work, ON_80)) is None
    other = smallest_fit([work], small)
    assert other is not None and memory_of(work, other).gigabytes <= 24
    tuned = table2("ft", "Gemma-2-9B")
    assert smallest_fit([work, tuned], small) == other  # what the dearer of them needs
    like = table2("rect", "Mistral-7B-v0.3")
    both, sliced = remedies([work, like, tuned], small)
    assert [e.editor for e in both.editors] == ["memit", "rect"]
    assert (both.resources.ranks, both.resources.sharding) == (other.ranks, "zero3")
    assert [e.editor for e in sliced.editors] == ["ft"]
    assert (sliced.resources.ranks, sliced.resources.sharding) == (2, "zero3")
    assert sliced.gpu_memory_gb is None and not sliced.resources.offload
    (larger,) = remedies([work], Placement(device=gpu(4)))
    assert larger.gpu_memory_gb is not None and larger.resources.sharding == "none"
    # A model that no GPU holds whole.
    huge = replace(work, architecture=replace(work.architecture, parameters=175_000_000_000))
    (hopeless,) = remedies([huge], Placement(device=gpu(4)))
    assert (hopeless.resources.ranks, hopeless.resources.offload) == (16, True)
    assert hopeless.gpu_memory_gb == math.ceil(
        memory_of(huge, replace(ON_80, sharded=True, ranks=16, offload=True)).gigabytes
    )
    assert remedies([work, tuned], Placement(device=gpu(120))) == []


FOLLOWED: dict[str, tuple[Path, tuple[str, ...]]] = {
    "one model, many kinds of editors": (
        GRIDS / "table2.yaml",
        ("--gpu-memory-gb", "24", "--set", "models=[{name: Mistral-7B-v0.3, preset: "
         "mistral-7b-v0.3}]", "--set", "resources={gpus: 1, cpus: 3, memory_gb: 30}"),
    ),
    "three models, of which one fits": (GRIDS / "table2.yaml", ("--gpu-memory-gb", "40")),
    "no sharding helps": (GRIDS / "table4.yaml", ("--gpu-memory-gb", "8")),
    "settings and variants": (
        TINY,
        ("--gpu-memory-gb", "1", "--set", "resources={gpus: 0.5}", "--set",
         "editors=[{editor: ft, settings: {lr: 1.0e-05, modules: ['down:1']}}, {editor: ft, "
         "variant: it's}, {editor: ultraedit, settings: {step: 1.0e-3}}]"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLLOWED)
def test_a_remedy_works_when_it_is_followed(case: str, tmp_path: Path) -> None:
    """Every printed line, by the command that printed it; together they are the whole grid."""
    grid, given = FOLLOWED[case]
    common = (grid, *given, "--results", tmp_path)
    code, text = run(*common)
    assert code == 1 and "DOES NOT FIT" in text
    _, _, below = text.partition("WOULD FIT")
    lines = [line.strip() for line in below.splitlines()[1:] if line.startswith("  ")]
    assert lines
    cells: list[str] = []
    for line in lines:
        options = shlex.split(line[line.index(": --") + 2 :])
        done = CliRunner().invoke(app, ["plan", *map(str, common), *options])
        assert isinstance(done.exception, SystemExit | None), (line, done.exception)
        assert "FIT" not in done.output, line
        missing = [x for x in done.output.splitlines() if x.startswith("MISSING")]
        assert done.exit_code == bool(missing), line
        cells += _cells(done.output)
        assert line.startswith(", ".join(dict.fromkeys(_editors(options))))
    assert sorted(cells) == sorted(_cells(text)) and len(cells) == len(set(cells))


def _cells(text: str) -> list[str]:
    """Keys and paths of the cells that `plan` lists."""
    return [" ".join(x.split()[1:3]) for x in text.splitlines() if x.startswith("missing")]


def _editors(options: list[str]) -> list[str]:
    (given,) = [o for o in options if o.startswith("editors=")]
    entries = yaml.safe_load(given.partition("=")[2])
    return [e["editor"] + (f"/{e['variant']}" if "variant" in e else "") for e in entries]


def test_a_remedy_keeps_the_rest_of_the_resources(tmp_path: Path) -> None:
    grid, given = FOLLOWED["one model, many kinds of editors"]
    _, text = run(grid, *given, "--results", tmp_path, "--no-cells")
    sharded = [line for line in text.splitlines() if "sharding: zero3" in line]
    assert sharded and all("gpus: 1, cpus: 3, memory_gb: 30, ranks: " in x for x in sharded)


def _one(editor: str, *more: str) -> Cell:
    return cells_of(load_grid(TINY, [f"editors=[{editor}]", *more]))[0]


def test_what_keep_edited_keeps_is_on_the_disk() -> None:
    name = "edited matrices that are kept"
    for keep in (True, False):
        work = workload_of(_one("{editor: ultraedit}", f"keep_edited={str(keep).lower()}"))
        kept = 4e-9 * work.edited_parameters if keep else 0.0
        assert disk_gb([work, work])[name] == pytest.approx(2 * kept)
    grace = workload_of(
        _one("{editor: grace, settings: {modules: ['down:1']}}", "keep_edited=true")
    )
    assert disk_gb([grace])[name] == pytest.approx(memory_of(grace, ON_80).parts["memory"] / 1e9)


def test_a_network_is_trained_once_for_all_who_share_it() -> None:
    editors = "editors=[{editor: rledit, settings: {trajectory_batches: 2, train_steps: 5}}]"
    streams = "streams=[{n_batches: 2, batch_size: 4}, {n_batches: 3, batch_size: 4}]"
    cells = cells_of(load_grid(TINY, [editors, streams]))
    found = estimate(cells, []).cells
    assert found[0].seconds.setup > 0 and found[1].seconds.setup == 0
    assert [c.trained for c in found] == [10, 0]


def test_training_runs_the_lower_layers_once_for_every_edit_of_its_pool() -> None:
    cells = cells_of(load_grid(GRIDS / "smollm2.yaml", ["seeds=[0]"]))
    work = workload_of(next(c for c in cells if c.label == "rledit"))
    drawn = work.trained_batches * work.cell.stream.batch_size
    place = Placement(device=core())
    assert work.train_pool is not None and work.train_pool < drawn
    pools = (work.train_pool, drawn - 1, drawn, 2 * drawn, None)
    found = [modelled(replace(work, train_pool=pool), place).training for pool in pools]
    assert found[0] < found[1] < found[2]
    assert found[2] == found[3] == found[4]  # no more prompts than are drawn
    cell = replace(work.cell, resources=replace(work.cell.resources, prefix_store_gb=0.0))
    assert modelled(replace(work, cell=cell), place).training == found[2]
    tight = replace(work.cell, resources=replace(work.cell.resources, prefix_store_gb=0.05))
    assert found[0] < modelled(replace(work, cell=tight), place).training < found[2]


def test_cells_on_a_gpu_keep_prefixes_where_they_are_dearer_to_make_than_to_send() -> None:
    def chosen(editor: str, *more: str) -> StoreChoice:
        return store_choice(table2(editor, "Llama-3-8B", *more).cell)

    one = "resources={gpus: 1, prefix_store_gb: 8}"
    assert chosen("rledit", one).made
    assert "of them have to lie below" in (chosen("memit", one).reason or "")
    assert "prefix_store_gb is 0.1" in (
        chosen("rledit", "resources={gpus: 1, prefix_store_gb: 0.1}").reason or ""
    )
    several = "resources={gpus: 1, ranks: 2, prefix_store_gb: 8}"
    assert chosen("rledit", several).reason == "only cells of one rank keep prefixes"
    trained = table2("rledit", "Llama-3-8B", one).cell
    assert training_store_choice(trained).made
    less = replace(trained, resources=replace(trained.resources, prefix_store_gb=4.0))
    assert "edits that training draws take about" in (training_store_choice(less).reason or "")
    on_cpu = replace(less, resources=replace(less.resources, gpus=0.0))
    assert training_store_choice(on_cpu).made
    small = cells_of(load_grid(GRIDS / "smollm2.yaml", ["resources={gpus: 1}"]))
    reasons = {store_choice(c).reason for c in small if c.label == "rledit"}
    assert reasons == {"a GPU runs the layers below about as fast as it is sent what they give"}


def test_a_window_fills_along_a_trajectory() -> None:
    def seconds(depth: int) -> float:
        reward = f"editors.rledit.settings.depth={depth}"
        length = "editors.rledit.settings.trajectory_batches=4"
        (chosen,) = (c for c in cells_of(load_grid(TINY, [reward, length])) if c.label == "rledit")
        return modelled(workload_of(chosen), Placement(device=core())).training

    one, two, four, more = (seconds(depth) for depth in (1, 2, 4, 9))
    # Batches that four steps score: 4, 1 + 2 + 2 + 2 and 1 + 2 + 3 + 4.
    assert (four - one) / (two - one) == pytest.approx(6 / 3, rel=0.2)
    assert more == four


def test_a_plan_tells_the_batches_that_a_run_will_show(tmp_path: Path) -> None:
    several = "editors.rledit.settings.trajectories_per_step=2"
    args = ["plan", str(TINY), "--results", str(tmp_path), "--no-cells", "--set", several]
    lines = CliRunner().invoke(app, args).output.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("  ")}
    # Two optimiser steps on two trajectories of three batches; MALMEN's are one of two batches.
    assert " 12 batches " in rows["rledit"] and " 4 batches " in rows["malmen"]
    assert "trained on" in rows["editor"] and "batches" not in rows["ultraedit"]
    cells = {c.label: c for c in cells_of(load_grid(TINY, [several]))}
    assert cells["rledit"].trained_batches == 12 and cells["none"].trained_batches == 0


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
    assert code == 1 and "MISSING: evaluation data: data/ability/rte.jsonl is not there" in text


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


HUB_REVISION = "0" * 40
HUB_DATA = f"hf://datasets/owner/edits@{HUB_REVISION}/zsre_eval.json"
HUB_CORPUS = f"hf://datasets/owner/texts@{HUB_REVISION}/wiki/first.jsonl"


def _cached(folder: Path, repository: str, name: str, content: bytes) -> None:
    """A file in a hub cache, where the hub's library looks for it."""
    owner = f"datasets--{repository.replace('/', '--')}"
    path = folder / owner / "snapshots" / HUB_REVISION / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub from which nothing can be fetched; its folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def _on_the_hub(*editors: str) -> tuple[str, ...]:
    entries = ", ".join(f"{{editor: {name}}}" for name in editors)
    return (
        "--set", f"datasets=[{{name: world, files: {{evaluation: '{HUB_DATA}'}}}}]",
        "--set", f"statistics={{corpus: '{HUB_CORPUS}'}}",
        "--set", f"editors=[{entries}]",
    )  # fmt: skip


def test_files_of_the_hub_are_among_the_downloads(hub: Path, tmp_path: Path) -> None:
    """Without the hub: what is to be fetched is named, and fetched by nobody."""
    code, text = run(TINY, "--results", tmp_path, *_on_the_hub("none", "memit"))
    assert code == 0, text
    assert f"needs: data: fetch {HUB_DATA}, of a size that the hub does not tell" in text
    assert (
        "hf download owner/edits zsre_eval.json --repo-type dataset --revision " + HUB_REVISION
    ) in text
    assert f"needs: covariance corpus: fetch {HUB_CORPUS}" in text
    assert "downloads 0 GB and 2 files of unknown size" in text
    assert text.count("(its data is not fetched)") == 2
    _, none = run(TINY, "--results", tmp_path, *_on_the_hub("none"))
    assert HUB_CORPUS not in none and "and 1 files of unknown size" in none


def test_what_the_hub_tells_of_sizes_is_added_up(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"zsre_eval.json": 250_000_000, "wiki/first.jsonl": 1_750_000_000}

    def info(_: Any, repository: str, name: str, **where: Any) -> list[Any]:
        assert where == {"revision": HUB_REVISION, "repo_type": "dataset"}
        return [SimpleNamespace(size=sizes[name])]

    monkeypatch.setattr("pipeline.plan.estimate.needs.hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi.get_paths_info", info)
    _, text = run(TINY, "--results", tmp_path, *_on_the_hub("memit"))
    assert f"data: fetch {HUB_DATA}, 0.25 GB;" in text
    assert f"covariance corpus: fetch {HUB_CORPUS}, 1.8 GB;" in text
    assert "downloads 2 GB\n" in text


def test_files_that_have_been_fetched_are_read_and_said_to_be_here(
    hub: Path, tmp_path: Path
) -> None:
    files = render_schema(World(WorldConfig(n_subjects=60)), "zsre", tmp_path)
    _cached(hub, "owner/edits", "zsre_eval.json", files["evaluation"].read_bytes())
    _, text = run(TINY, "--results", tmp_path, *_on_the_hub("none", "memit"), "--set",
                  "streams=[{n_batches: 1, batch_size: 4}]")  # fmt: skip
    assert f"needs: data: {HUB_DATA} is here (" in text
    assert f"covariance corpus: fetch {HUB_CORPUS}" in text
    assert text.count("(its data is not fetched)") == 1  # memit's, for its corpus
    assert "1 files of unknown size" in text


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


def test_second_moments_are_reckoned_from_the_corpus_that_is_there(tmp_path: Path) -> None:
    """Short sentences are no full windows, and a file that ends early is not the number asked."""
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    sentences = [f"Sentence {i} says where the river rises." for i in range(2500)]
    short.write_text("\n".join(sentences))
    long.write_text("\n".join(" ".join(sentences[:200]) for _ in range(2500)))
    works = {}
    for path in (short, long, tmp_path / "away.txt"):
        sets = [f"statistics={{corpus: {path}, documents: 8000, max_tokens: 300}}"]
        grid = load_grid(TINY, [*sets, "editors=[{editor: memit}]"])
        works[path.stem] = workload_of(cells_of(grid)[0], readable=path.is_file())
    assert works["short"].documents == works["long"].documents == 2500
    mean = sum(len(text) for text in sentences) / len(sentences)
    assert works["short"].document_tokens == pytest.approx(1 + mean / 4, rel=0.01)
    assert works["long"].document_tokens == 300
    assert (works["away"].documents, works["away"].document_tokens) == (8000, 300)
    seconds = {n: statistics_seconds(w, ON_80, list(w.target_modules)) for n, w in works.items()}
    assert seconds["short"] < 0.1 * seconds["long"] < 0.1 * seconds["away"]
    assert statistics_seconds(works["long"], ON_80, ()) == 0.0


def test_plan_says_what_the_moments_are_of_and_which_are_there(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"Fact {i} is short." for i in range(40)))
    words = (TINY, "--no-cells", "--results", tmp_path, "--cache", tmp_path / "cache", "--set",
             f"statistics={{corpus: {corpus}}}", "--set",
             "editors=[{editor: none}, {editor: memit}]")  # fmt: skip
    line = (
        "needs: llama-tiny: key covariance of 2 linear layers{} (memit), over 40 documents "
        "of about 5 "
    )
    assert line.format("") in run(*words)[1]
    cell = next(c for c in cells_of(load_grid(TINY, words[7::2])) if c.label == "memit")
    name = next(iter(workload_of(cell).target_modules))
    summed = tmp_path / "cache" / shard_file(covariance_folder(cell), name, 0)
    summed.parent.mkdir(parents=True)
    summed.touch()
    assert line.format(", 1 of them in the cache") in run(*words)[1]


def test_covariances_of_output_gradients_are_reckoned_beside_those_of_keys() -> None:
    editors = (
        "editors=[{editor: memit, settings: {modules: ['down:19-23']}}, {editor: crispedit}, "
        "{editor: crispedit, variant: after, settings: {mode: sequential}}]"
    )
    memit, crisp, on = (
        table2(label, "Llama-3-8B", editors) for label in ("memit", "crispedit", "crispedit/after")
    )
    keys = {name: 14336 for name in crisp.target_modules}
    assert len(keys) == 5 and memit.covariances == keys
    assert crisp.covariances == keys | {gradients_of(name): 4096 for name in keys}
    of_keys = statistics_seconds(memit, ON_80, list(keys))
    assert statistics_seconds(crisp, ON_80, list(crisp.covariances)) > 2 * of_keys
    squares = 5 * (14336**2 + 4096**2)
    assert disk_gb([crisp, memit])["key covariance"] == pytest.approx(4 * squares / 1e9)
    assert memory_of(crisp, ON_80).parts["covariances of text and edits"] == 2 * 4 * squares
    # The eigenvectors are taken anew for every batch of a sequential stream.
    vectors = 9 * 5 * (14336**3 + 4096**3) / 8e12
    again = modelled(on, ON_80).edit - modelled(crisp, ON_80).edit
    assert again == pytest.approx((crisp.cell.stream.n_batches - 1) * vectors)
    held, matrices = "resume state of a running cell (at most)", 5 * 14336 * 4096
    assert disk_gb([crisp])[held] == pytest.approx(4 * matrices / 1e9)
    assert disk_gb([on])[held] == pytest.approx(4 * (3 * matrices + squares) / 1e9)


def test_plan_names_both_covariances_and_counts_each(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"Fact {i} is short." for i in range(40)))
    words = (TINY, "--no-cells", "--results", tmp_path, "--cache", tmp_path / "cache", "--set",
             f"statistics={{corpus: {corpus}}}", "--set",
             "editors=[{editor: none}, {editor: memit}, {editor: crispedit}]")  # fmt: skip
    text = run(*words)[1]
    assert (
        "needs: llama-tiny: key covariance of 2 linear layers (memit, crispedit), over 40 "
        "documents of about 5 tokens" in " ".join(text.split())
    )
    assert (
        "needs: llama-tiny: covariance of output gradients of 2 linear layers (crispedit), over "
        "40 documents of about 5 tokens" in " ".join(text.split())
    )


def test_a_missing_corpus_names_the_editors_that_need_one() -> None:
    editors = "editors=[{editor: none}, {editor: memit}, {editor: ft}, {editor: alphaedit}]"
    grid = load_grid(TINY, [editors, "models.llama-tiny.checkpoint=/models/mine"])
    with pytest.raises(ConfigError) as caught:
        check_corpus(cells_of(grid))
    assert str(caught.value) == (
        "covariance.corpus is not given, and memit, alphaedit need key covariance of "
        "running text on llama-tiny: give a .txt, .jsonl or Parquet file with --set "
        "covariance.corpus=wiki.jsonl, take the sentences that the package ships with "
        "covariance.corpus=real_facts, or leave memit, alphaedit out"
    )
    one = ["editors=[{editor: memit}]", "models.llama-tiny.checkpoint=/models/mine"]
    with pytest.raises(ConfigError, match="not given, and memit needs key covariance of running"):
        check_corpus(cells_of(load_grid(TINY, one)))
    check_corpus(cells_of(load_grid(TINY, [editors])))


def test_plan_says_which_prefixes_are_kept_and_why_others_are_not(tmp_path: Path) -> None:
    editors = "editors=[{editor: none}, {editor: ultraedit}, {editor: rledit}]"
    words = (TINY, "--no-cells", "--results", tmp_path, "--set", editors)
    reason = "llama-tiny: no prefixes are kept for ultraedit, rledit: the first edited layer is 0"
    assert f"needs: {reason}" in run(*words)[1]
    grid = GRIDS / "smollm2.yaml"
    real = load_grid(grid, ["editors=[{editor: ultraedit}]", "seeds=[0, 1]"])
    found = estimate(cells_of(real), [])
    (line,) = (need.text for need in found.needs if "layer 20 of 30" in need.text)
    assert "kept for all cells of ultraedit: 1,200 prompts of the streams" in line
    assert "up to 4 GB" in line
    assert 0.01 < found.disk["prefixes"] < 1
    none = load_grid(grid, ["editors=[{editor: ultraedit}]", "resources={prefix_store_gb: 0}"])
    other = estimate(cells_of(none), [])
    assert any(need.text.endswith("prefix_store_gb is 0") for need in other.needs)
    assert other.disk["prefixes"] == 0


def test_a_second_cell_of_a_stream_is_reckoned_without_what_it_finds() -> None:
    editors = "editors=[{editor: ultraedit}, {editor: ultraedit, variant: b, settings: {ridge: 2}}]"
    grid = load_grid(GRIDS / "smollm2.yaml", [editors, "seeds=[0]"])
    first, second = estimate(cells_of(grid), []).cells
    assert second.seconds.score < 0.7 * first.seconds.score
    assert second.seconds.edit == first.seconds.edit
