"""Cells that others contain: one run gives the rows of every cell that asks for no more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import address_of, identity_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.done_cells import Containing, contained_cells, contains
from pipeline.plan.grid_plan import Plan, make_plan, shared_lines
from pipeline.results.diff import diff_lakes
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.layout import LakeError
from pipeline.results.query import query, runs
from pipeline.results.tables import build_table
from pipeline.run.export import export
from pipeline.run.tasks import FOUND, perform, tasks_of
from pipeline.storage.run_paths import RunPaths
from rledit.editors import editor_class
from rledit.measurements import fluency
from tests.unit.helpers.old_lakes import result_of

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
MALMEN = """{editor: malmen, settings: {rank: 8, n_blocks: 1, init_std: 0.05, initial_step: 1.0e-3,
    meta_lr: 1.0e-3, train_steps: 1, trajectory_batches: 2}}"""
EDITORS = f"[{{editor: none}}, {{editor: ultraedit, settings: {{step: 1.0e-3}}}}, {MALMEN}]"
WIDE = (
    "name=wide",
    f"editors={EDITORS}",
    "streams=[{n_batches: 2, batch_size: 4}, {n_batches: 3, batch_size: 4}]",
    "share_prefixes=true",
    "checkpoints=1",
    "protocols=[token_accuracy, exact_match, generation]",
    "measurements=[fluency]",
)
NARROW = (
    "name=narrow",
    f"editors={EDITORS}",
    "streams=[{n_batches: 2, batch_size: 4}]",
    "share_prefixes=true",
    "checkpoints=1",
    "protocols=[exact_match]",
)


def grid(*sets: str) -> Any:
    return load_grid(GRID, sets)


def one(*sets: str) -> Cell:
    (cell,) = cells_of(grid(*NARROW, *sets))
    return cell


def silent(*_: object) -> None:
    pass


def run(plan: Plan, run_paths: RunPaths) -> list[str]:
    """Run what is missing, in this process; returns the kinds of work that were done."""
    lake = Lake(run_paths.lake)
    lake.contain(plan.without_rows)
    lake.show(address_of(cell) for cell in plan.cells)
    tasks = tasks_of(plan.missing)
    for task in tasks.values():
        assert perform(task, run_paths, silent) in ("done", FOUND)
    return [task.kind for task in tasks.values()]


NONE, TRAINED = "editors=[{editor: none}]", f"editors=[{MALMEN}]"
STEP = "editors=[{editor: ultraedit, settings: {step: 1.0e-3}}]"


@pytest.mark.parametrize(
    ("editor", "more", "contained"),
    [
        (STEP, "protocols=[token_accuracy, exact_match]", True),
        (STEP, "protocols=[token_accuracy]", False),
        (STEP, "measurements=[fluency]", True),
        (STEP, "checkpoints=2", True),
        (STEP, "streams=[{n_batches: 4, batch_size: 4}]", False),  # not scored after two
        (STEP, "streams=[{n_batches: 1, batch_size: 8}]", False),
        (STEP, "seeds=[1]", False),
        (STEP, "probes=all", False),
        (STEP, "editors.ultraedit.settings.step=2.0e-3", False),
        (TRAINED, "protocols=[token_accuracy, exact_match]", True),
        (TRAINED, "checkpoints=2", True),
        (NONE, "streams=[{n_batches: 1, batch_size: 8}]", True),  # edits alone count
        (NONE, "streams=[{n_batches: 1, batch_size: 7}]", False),
        (NONE, "streams=[{n_batches: 6, batch_size: 4}]", False),  # not scored after two
    ],
)
def test_a_cell_is_contained_in_one_that_edits_alike_and_is_scored_by_more(
    editor: str, more: str, contained: bool
) -> None:
    part, whole = one(editor), one(editor, more)
    safe = editor_class(part.editor.editor).prefix_safe
    assert contains(identity_of(whole), identity_of(part), safe) == contained
    lonely = contained and not more.startswith("streams")
    assert contains(identity_of(part), identity_of(whole), safe) == (contained and not lonely)


@pytest.mark.parametrize(("editor", "contained"), [(STEP, True), (TRAINED, False)])
def test_a_longer_stream_contains_a_shorter_one_where_the_editor_is_safe_to_cut(
    editor: str, contained: bool
) -> None:
    part, whole = (
        one(editor),
        one(editor, "streams=[{n_batches: 4, batch_size: 4}]", "checkpoints=2"),
    )
    safe = editor_class(part.editor.editor).prefix_safe
    assert contains(identity_of(whole), identity_of(part), safe) == contained


@pytest.mark.parametrize("editor", [NONE, STEP])
@pytest.mark.parametrize(
    ("names", "contained"),
    [("perplexity", True), ("portability", True), ("fluency", False), ("consistency", False)],
)
def test_no_longer_stream_has_the_prompts_behind_which_a_shorter_one_writes_texts(
    editor: str, names: str, contained: bool
) -> None:
    """Portability is asked of the edits that are made, and looks at no later one."""
    measured = ("datasets.world.world.lessons=true", f"measurements=[{names}]")
    part = one(editor, *measured)
    whole = one(editor, *measured, "streams=[{n_batches: 4, batch_size: 4}]", "checkpoints=2")
    assert contains(identity_of(whole), identity_of(part), True) == contained
    halves = one(editor, *measured, "streams=[{n_batches: 4, batch_size: 2}]", "checkpoints=4")
    assert contains(identity_of(halves), identity_of(part), True) == (editor == NONE)


def test_of_a_longer_stream_nothing_is_shown_that_was_measured_on_all_its_edits(
    tmp_path: Path,
) -> None:
    lake = Lake(str(tmp_path))
    measured = ("measurements=[portability]", "datasets.world.world.lessons=true")
    longer = ("streams=[{n_batches: 4, batch_size: 4}]", "checkpoints=2")
    whole = one(STEP, "name=all", *longer, "measurements=[portability, fluency]", measured[1])
    metrics = ("perplexity", "fluency", "portability_x", "superseded_rephrases")
    steps = [{"step": n, "metric": m, "value": 1.0} for n in (0, 8, 16) for m in metrics]
    lake.commit(replace(result_of(whole), steps=steps))
    lake.contain(make_plan(grid(*NARROW, STEP, *measured), lake).without_rows)
    part = one(STEP, *measured)
    (record,) = [r for r in lake.manifest() if r.address.cell_key == key_of(part)]
    shown = lake.columns("steps", record)
    assert [*zip(shown["step"], shown["metric"], strict=True)] == [
        (0, "perplexity"), (8, "perplexity"), (8, "portability_x"), (8, "superseded_rephrases"),
    ]  # fmt: skip


def test_a_cell_that_an_earlier_version_found_in_a_longer_stream_is_run(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    longer = ("streams=[{n_batches: 4, batch_size: 4}]", "checkpoints=2")
    whole = one(STEP, "name=all", *longer, "measurements=[fluency]")
    part = one(STEP, "measurements=[fluency]")
    lake.commit(result_of(whole))
    within = Containing(key=key_of(whole), name="", done=True)
    lake.contain(contained_cells([part], {key_of(part): within}))
    plan = make_plan(grid(*NARROW, STEP, "measurements=[fluency]"), lake)
    assert plan.missing == (part,) and not plan.contained


def test_of_two_grids_in_one_lake_nothing_shared_is_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fluency, "TEXT_TOKENS", 5)
    run_paths = RunPaths.under(tmp_path)
    lake = Lake(run_paths.lake)
    wide = make_plan(grid(*WIDE), lake)
    assert [c.stream.n_batches for c in wide.missing] == [2, 3, 3, 3] and not wide.contained
    run(wide, run_paths)
    before = {r.address.cell_key for r in lake.manifest()}
    plan = make_plan(grid(*NARROW), lake)
    names = {cell.label: cell.path for cell in plan.cells}
    assert plan.missing == () and plan.done == {key_of(cell) for cell in plan.cells}
    assert shared_lines(plan) == [
        f"shared: {names['none']} has its rows in wide/llama-tiny/world/none/3x4, which is done",
        f"shared: {names['ultraedit']} has its rows in wide/llama-tiny/world/ultraedit/3x4, "
        "which is done",
        f"shared: {names['malmen']} has its rows in wide/llama-tiny/world/malmen/2x4, "
        "which is done",
    ]
    assert run(plan, run_paths) == []
    assert {r.address.cell_key for r in lake.manifest()} == before | plan.done
    alone = RunPaths.under(tmp_path / "alone", cache=run_paths.cache)
    assert run(make_plan(grid(*NARROW), Lake(alone.lake)), alone).count("edit") == 3
    scores = "editor, n_batches, n_edits, final, protocol, efficacy, generalization, specificity"
    edits = "editor, checkpoint, protocol, edit_index, edit_id, efficacy, specificity, superseded"
    for columns, view, at in ((scores, "runs", "n_edits"), (edits, "edits", "checkpoint")):
        sql = f"SELECT {columns} FROM {view} WHERE grid = 'narrow' AND {at} > 0 ORDER BY ALL"
        shared, own = (query(sql, where.lake).rows for where in (run_paths, alone))
        assert shared == own != ()
    # Before the first edit a longer stream is scored on edits that are not this one's.
    sql = "SELECT editor FROM runs WHERE grid = 'narrow' AND n_edits = 0"
    assert query(sql, run_paths.lake).rows == (("malmen",),)
    assert {row["protocol"] for row in runs(lake, "narrow")} == {"exact_match"}
    for record in lake.manifest("narrow"):
        rows = lake.result(record, ("scores", "edits", "answers", "steps"))
        assert set(rows.scores["protocol"]) == set(rows.edits["protocol"]) == {"exact_match"}
        of_this_stream = record.address.editor == "malmen"
        assert rows.scores["final"] == ([False, True] if of_this_stream else [True])
        assert max(rows.scores["checkpoint"]) == 8
        assert set(rows.answers["edit_index"]) <= {*range(8)}
        assert max(rows.steps["step"]) == 8 and rows.n_edits == 8
        if record.values["edit_seconds"]:
            per_edit = record.values["edit_seconds"] / 8
            assert per_edit == pytest.approx(record.values["edit_ms"] / 1000)
    again = make_plan(grid(*NARROW), lake)
    assert again.missing == () and again.done == plan.done
    with pytest.raises(LakeError, match="has no model of its own: its rows are in cell"):
        export(sorted(plan.done)[0], run_paths, tmp_path / "model")
    assert diff_lakes(lake, lake, "wide").equal


def test_a_longer_stream_answers_only_where_the_grid_shares_prefixes(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.commit(result_of(one(STEP, "streams=[{n_batches: 4, batch_size: 4}]", "checkpoints=2")))
    assert make_plan(grid(*NARROW, STEP), lake).missing == ()
    own = grid(*NARROW, STEP, "share_prefixes=false")
    assert make_plan(own, lake).missing == tuple(cells_of(own))


def test_cells_of_one_grid_that_contain_each_other_are_run_once(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    sizes = "streams=[{n_batches: 2, batch_size: 4}, {n_batches: 4, batch_size: 2}]"
    plan = make_plan(grid("editors=[{editor: none}]", "checkpoints=1", sizes), lake)
    first, second = plan.cells
    assert plan.missing == (first,) and not plan.done
    assert shared_lines(plan) == [
        f"shared: {second.path} has its rows in {first.path}, which is run"
    ]
    lake.contain(plan.without_rows)
    lake.show(address_of(cell) for cell in plan.cells)
    assert runs(lake, "tiny") == []
    lake.record_failure(
        address_of(first), "out of memory", identity=identity_of(first), code_version="0"
    )
    failed = runs(lake, "tiny", final=True)
    assert [(row["n_batches"], row["status"]) for row in failed] == [(2, "failed"), (4, "failed")]
    assert make_plan(grid("editors=[{editor: none}]", "checkpoints=1", sizes), lake).missing == (
        first,
    )


def test_dropping_a_contained_cell_leaves_the_rows_of_the_other(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    whole, part = one(STEP, "name=all", "protocols=[token_accuracy, exact_match]"), one(STEP)
    lake.commit(result_of(whole))
    lake.show([address_of(whole)])
    plan = make_plan(grid(*NARROW, STEP), lake)
    lake.contain(plan.without_rows)
    lake.show(address_of(cell) for cell in plan.cells)
    assert lake.is_done(key_of(part)) and lake.verify(key_of(part)) == []
    with pytest.raises(ConfigError, match=r"settings.step: 0.001 → 0.002"):
        make_plan(grid(*NARROW, STEP, "editors.ultraedit.settings.step=2.0e-3"), lake)
    lake.forget(key_of(part))
    assert lake.is_done(key_of(whole)) and not lake.is_done(key_of(part))
    assert not lake.storage.list("contained")
    # Where the other goes, the contained one is missing again.
    lake.contain(plan.without_rows)
    lake.forget(key_of(whole))
    assert make_plan(grid(*NARROW, STEP), lake).missing == plan.cells


def test_a_replaced_cell_stays_where_another_grid_has_its_rows_in_it(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    two = ("name=all", "protocols=[token_accuracy, exact_match]")
    whole = one(STEP, *two)
    lake.commit(result_of(whole))
    lake.show([address_of(whole)])
    plan = make_plan(grid(*NARROW, STEP), lake)
    lake.contain(plan.without_rows)
    lake.show(address_of(cell) for cell in plan.cells)
    other = grid(*two, STEP, "editors.ultraedit.settings.step=2.0e-3")
    instead = make_plan(other, lake, replace=True)
    assert instead.missing == tuple(cells_of(other)) and instead.outdated == ()
    # The other grid replaces its own cell as well: then nobody asks for those rows.
    own = grid(*NARROW, STEP, "editors.ultraedit.settings.step=2.0e-3")
    lake.show(address_of(cell) for cell in instead.cells)
    assert make_plan(own, lake, replace=True).outdated == (key_of(one(STEP)),)


def test_cells_of_other_code_answer_for_none_where_they_are_run_again(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    whole = one(STEP, "name=all", "protocols=[token_accuracy, exact_match]")
    lake.commit(replace(result_of(whole), code_version="0.1.0+old"))
    lake.contain(make_plan(grid(*NARROW, STEP), lake).without_rows)
    plan = make_plan(grid(*NARROW, STEP), lake, rerun_other_code=True)
    assert plan.missing == plan.cells and not plan.contained


def test_a_contained_cell_that_was_run_itself_keeps_its_own_rows(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    whole, part = one(STEP, "name=all", "protocols=[token_accuracy, exact_match]"), one(STEP)
    lake.commit(result_of(whole))
    lake.contain(make_plan(grid(*NARROW, STEP), lake).without_rows)
    kept = json.loads(lake.storage.read_bytes(f"contained/{key_of(part)}.json"))
    assert kept["within"] == key_of(whole)
    lake.commit(result_of(part, noise=3))
    (record,) = [r for r in lake.manifest() if r.address.cell_key == key_of(part)]
    assert record.asked is None and record.stored_key == key_of(part)


def test_a_grid_that_asks_for_less_than_it_did_replaces_nothing(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    before = one(STEP, "protocols=[token_accuracy, exact_match]")
    lake.commit(result_of(before))
    lake.show([address_of(before)])
    plan = make_plan(grid(*NARROW, STEP), lake)
    assert plan.missing == plan.outdated == ()
    lake.contain(plan.without_rows)
    lake.show(address_of(cell) for cell in plan.cells)
    assert {row["cell"] for row in runs(lake, "narrow")} == {key_of(one(STEP))}
    assert {row["protocol"] for row in runs(lake, "narrow")} == {"exact_match"}


def test_a_dataset_is_scored_by_some_of_the_grids_protocols() -> None:
    two = "datasets=[{name: a, world: {}}, {name: b, world: {}, protocols: [exact_match]}]"
    asked = (NONE, two, "protocols=[token_accuracy, exact_match]")
    first, second = cells_of(grid(*asked))
    assert first.protocols == ("token_accuracy", "exact_match")
    assert second.protocols == ("exact_match",)
    alike = cells_of(grid(NONE, "datasets=[{name: c, world: {}}]", "protocols=[exact_match]"))
    assert identity_of(second) == identity_of(alike[0])
    with pytest.raises(ConfigError, match="unknown protocol of the grid 'choice'"):
        grid(NONE, two.replace("exact_match", "choice"), "protocols=[token_accuracy]")


def test_a_cell_in_a_longer_one_that_failed_has_no_scores(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    whole = one(STEP, "name=all", "streams=[{n_batches: 4, batch_size: 4}]", "checkpoints=2")
    plan = make_plan(grid(*NARROW, STEP), lake)
    within = Containing(key=key_of(whole), name="", done=False)
    lake.contain(contained_cells(plan.cells, {key_of(cell): within for cell in plan.cells}))
    lake.show(address_of(cell) for cell in plan.cells)
    reached = result_of(whole).scores[:2]
    assert [row["checkpoint"] for row in reached] == [8, 8]  # as long as the contained cell
    lake.record_failure(
        address_of(whole), "broken", identity=identity_of(whole), code_version="0", scores=reached
    )
    (row,) = runs(lake, "narrow", final=False)
    assert (row["status"], row["final"], row["efficacy"]) == ("failed", None, None)
    assert "1 cell failed." in build_table(runs(lake, "narrow")).notes


def test_the_unedited_model_has_the_batches_of_who_asks(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    sizes = "streams=[{n_batches: 2, batch_size: 4}, {n_batches: 4, batch_size: 2}]"
    plan = make_plan(grid("editors=[{editor: none}]", "checkpoints=1", sizes), lake)
    lake.contain(plan.without_rows)
    lake.show(address_of(cell) for cell in plan.cells)
    lake.commit(result_of(plan.cells[0]))
    expected = {(4, i, i // 4) for i in range(8)} | {(2, i, i // 2) for i in range(8)}
    assert {*query("SELECT batch_size, edit_index, batch_index FROM edits", lake).rows} == expected
    columns = [lake.columns("edits", record) for record in lake.manifest("tiny")]
    found = {
        (size, *of)
        for size, own in zip((2, 4), columns, strict=True)
        for of in zip(own["edit_index"], own["batch_index"], strict=True)
    }
    assert found == expected
