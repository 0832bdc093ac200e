"""Data without locality prompts: editors that learn from them are skipped with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.grid import Grid
from pipeline.config.parse import load_grid
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.checks import skip_reason
from pipeline.plan.grid_plan import make_plan, pool_lines
from pipeline.plan.preflight import preflight
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.results.rendering import render_table
from pipeline.results.report import write_report
from pipeline.results.tables import build_table
from pipeline.run.cache import Cache
from pipeline.run.cell import run_cell
from pipeline.run.driver import run_plan
from pipeline.run.reporting import silent
from pipeline.storage.run_paths import RunPaths
from rledit.editors import EDITORS
from rledit.world import World, WorldConfig
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
LEARNERS = [
    "dafnet", "hiedit", "instructedit", "malmen", "malmen_rledit", "malmen_star", "mend",
    "mend_rledit", "mend_star", "rledit",
]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> str:
    """Edits of the tiny grid's world in MQuAKE's schema."""
    world = World(WorldConfig(n_subjects=60))
    named = {}
    for split in ("train", "evaluation"):
        rows = []
        for i, edit in enumerate(world.draw(split, 16, seed=0)):
            hop: dict[str, Any] = {
                "prompt": edit.prompt.replace(str(edit.subject), "{}"),
                "subject": edit.subject,
                "question": edit.rephrases[0],
                "target_new": {"str": edit.target},
                "target_true": {"str": edit.old_target},
            }
            rows.append({"case_id": i, "requested_rewrite": [hop], "questions": []})
            rows[-1] |= {"new_answer": edit.target}
        named[split] = str(tmp_path / f"{split}.json")
        Path(named[split]).write_text(json.dumps(rows))
    return f"datasets=[{{name: mquake, files: {json.dumps(named)}, world: {{n_subjects: 60}}}}]"


def grid(files: str, *editors: str) -> Grid:
    return load_grid(GRID, [files, f"editors=[{', '.join(editors)}]"])


def cell(files: str, editor: str) -> Cell:
    return cells_of(grid(files, editor))[0]


def test_every_method_that_learns_from_them_says_so() -> None:
    found = {name: cls.trains_on for name, cls in EDITORS.items() if cls.trains_on}
    assert sorted(found) == LEARNERS
    assert found.pop("instructedit") == {"locality prompt"}  # it learns from the edit's own prompt
    assert set(found.values()) == {frozenset({"rephrase", "locality prompt"})}


@pytest.mark.parametrize("name", LEARNERS)
def test_they_are_refused_when_the_grid_is_planned(name: str, files: str) -> None:
    small = "settings: {n_blocks: 1, train_steps: 1}"
    assert skip_reason(cell(files, f"{{editor: {name}, {small}}}")) == (
        f"{name} learns from a locality prompt of every training edit, and 16 of 16 in the train "
        "pool of mquake (all 16 edits of train.json) have none; give the dataset a train file "
        "whose edits have one, or leave the editor out"
    )
    without = "settings: {n_blocks: 1, train_steps: 1, loc_coef: 0}"
    assert skip_reason(cell(files, f"{{editor: {name}, {without}}}")) is None


@pytest.mark.parametrize("name", sorted(set(EDITORS) - set(LEARNERS)))
def test_the_others_are_not(name: str, files: str) -> None:
    assert skip_reason(cell(files, f"{{editor: {name}}}")) is None


def test_a_plan_says_what_the_edits_lack(files: str, tmp_path: Path) -> None:
    lines = pool_lines([cell(files, "{editor: ft}")])
    assert "  without a locality prompt: 32 of 32, not scored by one" in lines
    asked = ["plan", str(GRID), "--results", str(tmp_path), "--set", files]
    answer = CliRunner().invoke(app, [*asked, "--set", "editors=[{editor: rledit}]"])
    assert "skipped" in answer.stdout and "learns from a locality prompt" in answer.stdout
    assert "0 to run" in answer.stdout


def test_a_plan_says_what_is_asked_for_and_not_there(files: str, tmp_path: Path) -> None:
    every = "measurements=[portability, consistency]"
    chosen = load_grid(GRID, [files, "editors=[{editor: ft}]", every, "protocols=[choice]"])
    found = [line for line in pool_lines(cells_of(chosen)) if "asked for" in line]
    assert found == [  # the rows have old answers, so choices can be scored
        "  portability: asked for and not measured, no edit of the stream has a question that "
        "follows from it",
        "  consistency: asked for and not measured, no edit of the stream names reference texts",
    ]


def test_keys_that_nobody_reads_are_named_in_the_plan(files: str) -> None:
    lines = [x for x in pool_lines([cell(files, "{editor: ft}")]) if "not read of" in x]
    assert len(lines) == 2  # a line for each file
    assert all(line.startswith("  not read of /") and "`case_id` 16" in line for line in lines)


@pytest.mark.long
def test_what_could_not_be_measured_is_said_with_the_results(tmp_path: Path) -> None:
    """Rows without a rephrase, an old answer and questions, and a grid that asks for all."""
    world = World(WorldConfig(n_subjects=60))
    rows = [
        {
            "src": edit.prompt,
            "ans": edit.target,
            "rephrase": None,
            "loc": edit.locality[0].prompt,
            "loc_ans": edit.locality[0].answer,
        }
        for edit in world.draw("evaluation", 20, seed=0)
    ]
    named = {}
    for split, own in (("train", rows[:8]), ("evaluation", rows[8:])):
        named[split] = str(tmp_path / f"{split}.json")
        Path(named[split]).write_text(json.dumps(own))
    dataset = f"datasets=[{{name: d, files: {json.dumps(named)}, world: {{n_subjects: 60}}}}]"
    stream = "streams=[{n_batches: 2, batch_size: 2}]"
    asked = [dataset, stream, "protocols=[choice, token_accuracy]", "measurements=[portability]"]
    (chosen,) = cells_of(load_grid(GRID, [*asked, "editors=[{editor: none}]"]))
    why = "no edit of the stream has a question that follows from it"
    assert f"  portability: asked for and not measured, {why}" in pool_lines([chosen])
    lake, cache = Lake(str(tmp_path / "lake")), Cache(tmp_path)
    run_cell(chosen, prepared_model(chosen, cache), None, cache, lake, silent)
    built = build_table(runs(lake, "tiny"))
    old = "no edit of the stream has an old answer that differs from its new one"
    for what, reason in (
        ("generalization", "no edit of the stream has a rephrase"),
        ("choice of the edits", old),
        ("portability", why),
    ):
        assert f"Not measured on d: {what}, because {reason}." in built.notes
    assert sum(note.startswith("Not measured") for note in built.notes) == 3
    write_report(lake, "tiny", tmp_path / "tiny.html")
    assert why in (tmp_path / "tiny.html").read_text()


@pytest.mark.long
def test_scores_of_a_part_of_the_edits_say_of_how_many(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": edit.prompt,
            "target": edit.target,
            "rephrases": list(edit.rephrases)[: place % 4 // 2],
            "locality": [{"prompt": p.prompt, "answer": p.answer} for p in edit.locality],
        }
        for place, edit in enumerate(
            World(WorldConfig(n_subjects=60)).draw("evaluation", 4, seed=0)
        )
    ]
    file = tmp_path / "edits.json"
    file.write_text(json.dumps(rows))
    dataset = f"datasets=[{{name: d, files: {{evaluation: {file}}}, world: {{n_subjects: 60}}}}]"
    stream = "streams=[{n_batches: 2, batch_size: 2}]"
    (chosen,) = cells_of(load_grid(GRID, [dataset, stream, "editors=[{editor: none}]"]))
    lake, cache = Lake(str(tmp_path / "lake")), Cache(tmp_path)
    run_cell(chosen, prepared_model(chosen, cache), None, cache, lake, silent)
    notes = [n for n in build_table(runs(lake, "tiny")).notes if "bring no" in n]
    assert notes == ["Gen on d: of 2 of 4 edits, as the others bring no rephrase."]


def test_a_run_records_the_refusal_and_computes_nothing(files: str, tmp_path: Path) -> None:
    chosen = grid(files, "{editor: rledit}")
    run_paths = RunPaths.under(tmp_path)
    lake = Lake(run_paths.lake)
    assert run_plan(chosen, make_plan(chosen, lake), run_paths, Console(quiet=True)) == 0
    (record,) = lake.manifest()
    assert record.status == "skipped" and "16 of 16 in the train pool" in str(record.reason)
    assert not (tmp_path / "cache").exists()


@pytest.mark.long
def test_what_is_not_there_is_a_dash_in_tables_and_reports(files: str, tmp_path: Path) -> None:
    lake, cache = Lake(str(tmp_path / "lake")), Cache(tmp_path)
    for editor in ("{editor: none}", "{editor: ft, settings: {lr: 0.01}}"):
        chosen = cell(files, editor)
        preflight([chosen])
        folder = prepared_model(chosen, cache)
        assert run_cell(chosen, folder, None, cache, lake, silent) == "done"
    rows = runs(lake, "tiny")
    assert all(row["generalization"] is not None for row in rows)
    assert {row["specificity"] for row in rows} == {None}
    text = render_table(build_table(rows), "md")
    ft = next(line for line in text.splitlines() if line.startswith("| ft"))
    eff, gen, spe, mean = [part.strip() for part in ft.split("|")[2:6]]
    assert (spe, mean) == ("–", "–") and float(eff) > 0 and float(gen) > 0
    page = tmp_path / "tiny.html"
    write_report(lake, "tiny", page)
    assert "Eff" in page.read_text()
