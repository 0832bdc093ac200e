"""A grid of real facts: the model is asked first, resumably, and cells draw on what it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cache_names import known_name
from pipeline.plan.cell_keys import address_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.grid_plan import check_cell, pool_lines
from pipeline.plan.stored_spec import write_cell_spec
from pipeline.results.lake.lake import Lake
from pipeline.run.cache import Cache
from pipeline.run.reporting import Stage, silent
from pipeline.run.stages import ask_known_facts
from pipeline.run.tasks import perform, tasks_of
from pipeline.storage.object_store import Storage
from pipeline.storage.run_paths import RunPaths
from rledit.facts import RealFacts
from rledit.facts.knowledge import PART
from tests.unit.helpers.knowing_model import byte_pair_tokenizer, learn, small_model

GRID = """
name: known
models: [{name: small, checkpoint: %s, modules: ["down:all"]}]
datasets: [{name: facts, real_facts: true}]
editors: [{editor: none}, {editor: ultraedit}]
streams: [{n_batches: 2, batch_size: 3}]
measurements: [portability]
"""


class Interrupted(Exception):
    """Stands for a killed process."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that says the same answer everywhere, and so knows the facts it is true of."""
    folder = tmp_path_factory.mktemp("small")
    source = RealFacts()
    prompts = [edit.prompt for edit in source.draw("evaluation", 16, seed=0)]
    tokenizer = byte_pair_tokenizer([f"{prompt} euro Africa English" for prompt in prompts], 320)
    model: Any = small_model("llama", tokenizer)
    learn(model, tokenizer, [(prompt, "Africa") for prompt in prompts], steps=15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks for fewer facts than there are: the pass is the same, and shorter."""
    asked = [f for f in RealFacts().to_ask() if f.relation == "country_continent"]
    monkeypatch.setattr(RealFacts, "to_ask", lambda self: tuple(asked))
    monkeypatch.setattr(ask_known_facts, "SAVE_EVERY_PARTS", 1)


def cells(checkpoint: Path, folder: Path, *overrides: str) -> list[Cell]:
    path = folder / "grid.yaml"
    path.write_text(GRID % checkpoint)
    return cells_of(load_grid(path, overrides))


def record(cell: Cell, cache: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cache / known_name(cell)).read_text())
    return found["known"]


@pytest.mark.usefixtures("few")
def test_an_interrupted_pass_goes_on_and_ends_the_same(checkpoint: Path, tmp_path: Path) -> None:
    cell = cells(checkpoint, tmp_path)[0]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ask_known_facts.ask_model(cell, checkpoint, Cache(whole), silent)
    seen: list[int] = []

    def report(stage: Stage, done: int, total: int) -> None:
        seen.append(done)
        if done == 2 * PART and len(seen) < 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        ask_known_facts.ask_model(cell, checkpoint, Cache(parts), report)
    assert not (parts / known_name(cell)).exists()
    ask_known_facts.ask_model(cell, checkpoint, Cache(parts), report)
    # Its second part was answered and not yet saved.
    assert seen[:5] == [0, PART, 2 * PART, PART, 2 * PART]
    assert record(cell, parts) == record(cell, whole)
    assert 0 < sum(map(bool, record(cell, whole).values())) < len(record(cell, whole))
    assert [p for p in parts.rglob("*") if p.is_file()] == [parts / known_name(cell)]


@pytest.mark.usefixtures("few")
def test_cells_draw_locality_from_what_the_model_knows(checkpoint: Path, tmp_path: Path) -> None:
    plain, edited = cells(checkpoint, tmp_path)
    run_paths = RunPaths.under(tmp_path / "results")
    tasks = tasks_of([plain, edited])
    kinds = [task.kind for task in tasks.values()]
    assert kinds == ["prepare", "ask", "edit", "calibrate", "edit"]
    asked = next(task for task in tasks.values() if task.kind == "ask")
    assert all(asked.key in t.needs for t in tasks.values() if t.kind in ("calibrate", "edit"))
    ended = [perform(task, run_paths, silent) for task in tasks.values()]
    assert ended == ["found", *["done"] * 4], "the checkpoint is there already"
    knows = record(plain, Path(run_paths.cache))
    lake = Lake(run_paths.lake)
    for cell in (plain, edited):
        found = lake.record(address_of(cell))
        assert found is not None and found.done
        facts = found.values["resolved"]["real_facts"]
        assert facts["known"]["country_continent"][0] == sum(map(bool, knows.values()))
        assert facts["pools"]["evaluation"] == RealFacts().sizes()["evaluation"]


def test_what_is_known_is_no_part_of_a_cells_identity(checkpoint: Path, tmp_path: Path) -> None:
    cell = cells(checkpoint, tmp_path)[1]
    cache = Cache(tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"known/\w+\.json, which the model was asked for"):
        ask_known_facts.with_known(cell, cache)
    known = {fact.fact_id: [1] for fact in RealFacts().to_ask()}
    Storage(cache.folder).write_bytes(known_name(cell), json.dumps({"known": known}).encode())
    knowing = ask_known_facts.with_known(cell, cache)
    assert key_of(knowing) == key_of(cell) and knowing.known
    probes = [p for e in knowing.source().draw("evaluation", 9, seed=0) for p in e.locality]
    assert probes != [p for e in cell.source().draw("evaluation", 9, seed=0) for p in e.locality]
    storage = Storage(tmp_path / "lake")
    write_cell_spec(knowing, storage)
    entry = json.loads(storage.read_bytes(f"entries/{key_of(cell)}.json"))
    assert entry["cell"]["known"] == ""


def test_a_model_that_is_asked_in_another_way_knows_other_facts(
    checkpoint: Path, tmp_path: Path
) -> None:
    plain, edited = cells(checkpoint, tmp_path)
    unspaced = cells(checkpoint, tmp_path, "datasets.facts.answer_space=never")[0]
    assert known_name(plain) == known_name(edited) != known_name(unspaced)


def test_the_plan_says_how_large_the_pools_are(checkpoint: Path, tmp_path: Path) -> None:
    lines = pool_lines(cells(checkpoint, tmp_path))
    sizes = RealFacts().sizes()
    assert lines[0].startswith(f"facts of facts: train {sizes['train']}, validation ")
    assert "the facts that the unedited model knows; it is asked first" in lines[1]


def test_a_stream_longer_than_the_pool_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID % checkpoint)
    long = load_grid(path, ["streams=[{n_batches: 500, batch_size: 3}]"])
    with pytest.raises(ConfigError, match=r"real facts that the package ships.*give files of edit"):
        check_cell(cells_of(long)[0])


@pytest.mark.parametrize(
    "change, message",
    [
        ("datasets=[{name: f, real_facts: true, files: {all: x.json}}]", "have no use for files"),
        ("datasets=[{name: f, real_facts: true, order: file}]", "have no use for order"),
        ("models=[{name: small}]", "is trained on the synthetic world and knows no real facts"),
    ],
)
def test_what_makes_no_sense_with_real_facts_is_refused(
    checkpoint: Path, tmp_path: Path, change: str, message: str
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID % checkpoint)
    with pytest.raises(ConfigError, match=message):
        load_grid(path, [change])


def test_a_proxy_model_is_not_asked_for_real_facts(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID % "x")
    grid = load_grid(path, ["models=[{name: m, preset: llama-3-8b}]", "scale=standin"])
    with pytest.raises(ConfigError, match="a proxy trained on the synthetic world"):
        check_cell(cells_of(grid)[0])


def test_the_command_describes_the_facts(checkpoint: Path) -> None:
    found = CliRunner().invoke(app, ["data", "facts"])
    assert found.exit_code == 0, found.output
    assert "2,405 facts in 9 relations" in found.output
    assert "pools: train 1063" in found.output
    assert "GeoNames (CC-BY 4.0), CLDR (Unicode licence), mendeleev (MIT)" in found.output
