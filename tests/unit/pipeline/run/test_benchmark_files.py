"""Files of the newer benchmarks, from a row to figures: every schema on the tiny world's model."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.parse import load_grid
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.lake import Lake
from pipeline.results.query import query, runs
from pipeline.results.rendering import render_table
from pipeline.results.tables import build_table
from pipeline.run.cache import Cache
from pipeline.run.cell import run_cell
from pipeline.run.reporting import silent
from rledit.records import Edit
from rledit.world import World, WorldConfig
from tests.unit.helpers.prepared import prepared_model
from tests.unit.helpers.turns import marked

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
N = 4


def ripple(i: int, edit: Edit) -> dict[str, Any]:
    def case(prompt: str, answer: str, number: str) -> dict[str, Any]:
        query = {"prompt": prompt, "answers": [{"value": answer, "aliases": []}]}
        return {"test_queries": [{**query, "target_ids": [number]}], "test_condition": "OR"}

    numbers = {"subject_id": f"Q{i}", "relation": "R", "target_id": "Q9"}
    former = {**numbers, "prompt": f"{edit.prompt} {edit.old_target}.", "target_id": "Q8"}
    probe = edit.locality[0]
    return {
        "edit": {**numbers, "prompt": f"{edit.prompt} {edit.target}.", "original_fact": former},
        "Relation_Specificity": [case(probe.prompt, probe.answer, "Q7")],
        "Logical_Generalization": [case(edit.rephrases[0], edit.target, "Q9")],
        "Subject_Aliasing": [case(edit.rephrases[-1], edit.target, "Q9")],
    }


def akew(i: int, edit: Edit) -> dict[str, Any]:
    rewrite = {
        "prompt": edit.prompt.replace(str(edit.subject), "{}"),
        "subject": edit.subject,
        "target_new": {"str": edit.target},
        "target_true": {"str": edit.old_target},
        "question": edit.rephrases[0],
        "fact_new_uns": f"{edit.prompt} {edit.target} {edit.prompt} {edit.target}",
        "unsfact_triplets_GPT": [],
    }
    return {"case_id": i, "requested_rewrite": rewrite}


def unke(i: int, edit: Edit) -> dict[str, Any]:
    return {
        "id": i,
        "question": edit.prompt,
        "para_question": edit.rephrases[0],
        "answer": f"{edit.target} {edit.prompt} {edit.target}",
        "sub_question": [edit.rephrases[-1]],
        "sub_answer": [edit.target],
    }


def hallu(i: int, edit: Edit) -> dict[str, Any]:
    return {
        "subject": edit.subject,
        "relation": "R",
        "object": edit.target,
        "question": edit.prompt,
        "output_tiny": edit.old_target,
        "paraphrased_question": edit.rephrases[0],
        "locality_question": edit.locality[0].prompt,
        "locality_answer": edit.locality[0].answer,
        "question_2hop": edit.rephrases[-1],
        "answer_2hop": edit.target,
    }


def remastered(i: int, edit: Edit) -> dict[str, Any]:
    rewrite = {
        "prompt": edit.prompt.replace(str(edit.subject), "{}"),
        "subject": edit.subject,
        "question": edit.rephrases[0],
        "target_new_str": edit.target,
        "target_true_str": edit.old_target,
    }
    row = {"case_id": i, "requested_rewrite": [rewrite], "questions": [edit.rephrases[-1]]}
    return row | {"new_answer": edit.target, "new_triples_labeled": [["a", "b", edit.target]]}


def wikibigedit(i: int, edit: Edit) -> dict[str, Any]:
    return {
        "tag": "update",
        "subject": edit.subject,
        "update": edit.prompt,
        "ans": edit.target,
        "rephrase": edit.rephrases[0],
        "personas": None,
        "loc": edit.locality[0].prompt,
        "loc_ans": edit.locality[0].answer,
        "mhop": edit.rephrases[-1],
        "mhop_ans": edit.target,
    }


# Schema → how a row is made of an edit, and the kinds of questions that follow.
FAMILIES: dict[str, tuple[Callable[[int, Edit], dict[str, Any]], set[str]]] = {
    "ripple_edits": (ripple, {"logical_generalization", "subject_aliasing"}),
    "akew": (akew, {"short_answer"}),
    "unke": (unke, {"sub_question"}),
    "hallueditbench": (hallu, {"2_hop"}),
    "mquake_remastered": (remastered, {"multi_hop"}),
    "wikibigedit": (wikibigedit, {"multi_hop"}),
}


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    return World(WorldConfig(n_subjects=60)).draw("evaluation", 2 * N, seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (chosen,) = cells_of(load_grid(GRID, ["editors=[{editor: none}]"]))
    return prepared_model(chosen, Cache(tmp_path_factory.mktemp("models")))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix != ".csv":
        path.write_text(json.dumps(rows))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def cell(files: Any, *more: str, editor: str = "ultraedit", order: str = "file") -> Cell:
    named = json.dumps({"evaluation": files})
    data = f"datasets=[{{name: d, order: {order}, files: {named}, world: {{n_subjects: 60}}}}]"
    editors = f"editors=[{{editor: {editor}, settings: {{step: 0.01}}}}]"
    asked = [data, editors, "streams=[{n_batches: 2, batch_size: 2}]", "checkpoints=2", *more]
    return next(c for c in cells_of(load_grid(GRID, asked)) if c.editor_name == editor)


@pytest.mark.parametrize("name", marked(FAMILIES, list(FAMILIES)[:2]))
def test_a_stream_of_every_schema_is_edited_and_scored(
    name: str, edits: list[Edit], model: Path, tmp_path: Path
) -> None:
    make, kinds = FAMILIES[name]
    suffix = ".csv" if name == "hallueditbench" else ".json"
    path = write(tmp_path / f"rows{suffix}", [make(i, edit) for i, edit in enumerate(edits[:N])])
    chosen = cell(str(path), "measurements=[portability]")
    assert chosen.source().formats == (name,)  # type: ignore[attr-defined]
    lake = Lake(str(tmp_path / "lake"))
    run_cell(chosen, model, None, Cache(tmp_path), lake, silent)
    (final,) = [r for r in runs(lake, "tiny") if r["final"] and r["protocol"] == "token_accuracy"]
    assert final["n_edits"] == N and 0 <= final["efficacy"] <= 100
    assert final["stream_order"] == "file"
    asked = "SELECT DISTINCT metric FROM curves WHERE metric LIKE 'portability%'"
    metrics = {row[0] for row in query(asked, lake).rows}
    assert {f"portability_{kind}" for kind in kinds} <= metrics


def test_a_stream_by_time_steps_is_edited_in_their_order_and_says_so(
    edits: list[Edit], model: Path, tmp_path: Path
) -> None:
    days = ("20240220_20240301", "20240201_20240220")
    files = [
        str(write(tmp_path / f"wiki_big_edit_{day}.json",
                  [wikibigedit(j, edit) for j, edit in enumerate(edits[i * N : i * N + 2])]))
        for i, day in enumerate(days)
    ]  # fmt: skip
    chosen = cell(files, order="time")
    lake = Lake(str(tmp_path / "lake"))
    run_cell(chosen, model, None, Cache(tmp_path), lake, silent)
    found = query(
        "SELECT DISTINCT edit_index, edit_id FROM edits WHERE checkpoint = 4 ORDER BY edit_index",
        lake,
    )
    # The second file of the list is the first time step.
    assert [row[1].split(":")[1] for row in found.rows] == ["2", "2", "1", "1"]
    rows = runs(lake, "tiny")
    assert {row["stream_order"] for row in rows} == {"time"}
    table = build_table(rows)
    assert "Order of the edits of d: time." in table.notes
    assert "Order of the edits of d: time." in render_table(table, "md")
    shuffled = cell(files, order="shuffled")
    assert shuffled.source().data_hash != chosen.source().data_hash
