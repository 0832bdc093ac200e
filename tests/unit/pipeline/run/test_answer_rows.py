"""Answers of a cell: kept before the first edit and at the end, and of no influence on scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import address_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.lake import Lake
from pipeline.results.query import query
from pipeline.run.cache import Cache
from pipeline.run.cell import run_cell
from pipeline.run.reporting import Stage, silent
from pipeline.run.stages import edit
from rledit.protocols import generation
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
LEARNS = "editors.ultraedit.settings.step=0.05"


class Interrupted(Exception):
    """Stands for a killed process."""


def cell(editor: str, *overrides: str) -> Cell:
    return next(c for c in cells_of(load_grid(GRID, overrides)) if c.editor.editor == editor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_model(cell("none"), Cache(tmp_path_factory.mktemp("models")))


def stream(chosen: Cell, folder: Path, cache: Path) -> edit.StreamRows:
    return edit.edit_stream(chosen, folder, Cache(cache), None, silent)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not str(row.get("metric", "")).endswith("_seconds")]


def test_scores_and_keys_are_the_same_with_answers_and_without(
    folder: Path, tmp_path: Path
) -> None:
    settings = (LEARNS, "protocols=[token_accuracy, generation]", "measurements=[portability]")
    asked = cell("ultraedit", *settings, "answers={sample: all, at: checkpoints}")
    silent_one = cell("ultraedit", *settings, "answers.sample=0")
    assert key_of(asked) == key_of(silent_one) == key_of(cell("ultraedit", *settings))
    one, other = (stream(c, folder, tmp_path / c.answers.at) for c in (asked, silent_one))
    assert one.scores == other.scores and one.edits == other.edits
    assert without_times(one.steps) == without_times(other.steps)
    assert one.answers and not other.answers


def test_ten_edits_are_asked_before_and_after(folder: Path, tmp_path: Path) -> None:
    rows = stream(cell("ultraedit", LEARNS), folder, tmp_path).answers
    assert {r["checkpoint"] for r in rows} == {0, 12}
    for checkpoint in (0, 12):
        own = [r for r in rows if r["checkpoint"] == checkpoint]
        assert len({r["edit_index"] for r in own}) == 10
        assert {r["probe"] for r in own} == {"edit", "rephrase", "locality"}
    before, after = ([r["answer"] for r in rows if r["checkpoint"] == n] for n in (0, 12))
    assert before != after


def test_all_edits_can_be_asked_at_all_checkpoints(folder: Path, tmp_path: Path) -> None:
    chosen = cell("ultraedit", LEARNS, "answers={sample: all, at: checkpoints}")
    rows = stream(chosen, folder, tmp_path).answers
    count = {n: len({r["edit_index"] for r in rows if r["checkpoint"] == n}) for n in (0, 4, 8, 12)}
    assert count == {0: 12, 4: 4, 8: 8, 12: 12}


def test_answers_agree_with_the_scores_of_generation(folder: Path, tmp_path: Path) -> None:
    chosen = cell("ultraedit", LEARNS, "protocols=[generation_contains]", "answers.sample=all")
    rows = stream(chosen, folder, tmp_path)
    scored = {r["edit_index"]: r["efficacy"] for r in rows.edits if r["checkpoint"] == 12}
    said = {
        r["edit_index"]: 100.0 * r["has_target"]
        for r in rows.answers
        if r["checkpoint"] == 12 and r["probe"] == "edit"
    }
    assert said == scored and set(scored.values()) == {0.0, 100.0}


def test_every_editor_is_asked_the_same_edits_and_begins_from_the_same_answers(
    folder: Path, tmp_path: Path
) -> None:
    one, other = (
        stream(cell(name), folder, tmp_path / name).answers for name in ("ultraedit", "none")
    )
    names = ("edit_index", "edit_id", "probe", "probe_index", "prompt", "target", "answer")
    first, second = (
        [[r[n] for n in names] for r in rows if r["checkpoint"] == 0] for rows in (one, other)
    )
    assert first == second
    # Nothing is edited: the answers at the end are those before.
    end = [{**r, "checkpoint": 0} for r in other if r["checkpoint"] == 12]
    assert end == [r for r in other if r["checkpoint"] == 0]


@pytest.mark.parametrize("at", ["end", "checkpoints"])
@pytest.mark.parametrize(
    "stops", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)]
)
def test_an_interrupted_stream_keeps_the_same_answers(
    at: str, stops: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "SAVE_EVERY_SECONDS", 0.0)
    chosen = cell("ultraedit", LEARNS, f"answers.at={at}")
    straight = stream(chosen, folder, tmp_path / "a")

    def stop(stage: Stage, done: int, _: int) -> None:
        if stage == "edit" and done == stops:
            raise Interrupted

    with pytest.raises(Interrupted):
        edit.edit_stream(chosen, folder, Cache(tmp_path / "b"), None, stop)
    resumed = stream(chosen, folder, tmp_path / "b")
    assert resumed.answers == straight.answers


@pytest.mark.parametrize("stops", [2, 3])
@pytest.mark.parametrize(("before", "now"), [(2, 6), (0, 6), (6, 0)])
def test_a_stream_whose_sample_was_changed_while_it_stood_still_has_the_new_one(
    before: int, now: int, stops: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "SAVE_EVERY_SECONDS", 0.0)
    sampled = "answers.sample={}".format
    straight = stream(cell("ultraedit", LEARNS, sampled(now)), folder, tmp_path / "a")

    def stop(stage: Stage, done: int, _: int) -> None:
        if stage == "edit" and done == stops:
            raise Interrupted

    with pytest.raises(Interrupted):
        edit.edit_stream(
            cell("ultraedit", LEARNS, sampled(before)), folder, Cache(tmp_path / "b"), None, stop
        )
    resumed = stream(cell("ultraedit", LEARNS, sampled(now)), folder, tmp_path / "b")
    assert sorted(resumed.answers, key=place) == sorted(straight.answers, key=place)


def place(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("checkpoint", "edit_index", "probe", "probe_index"))


def test_a_committed_cell_can_be_asked_for_its_answers(folder: Path, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    for name in ("ultraedit", "none"):
        chosen = cell(name, LEARNS)
        assert run_cell(chosen, folder, None, Cache(tmp_path / "cache"), lake, silent) == "done"
    found = query("SELECT * FROM answers ORDER BY cell, edit_index, probe", lake).dicts()
    assert len(found) == 60 and {row["checkpoint"] for row in found} == {12}
    for row in found:
        assert row["had_target"] == (generation.within(row["target"], row["before"]) > 0)
        assert row["has_target"] == (generation.within(row["target"], row["answer"]) > 0)
    unedited = [row for row in found if row["editor"] == "none"]
    assert all(row["answer"] == row["before"] for row in unedited)
    record = lake.record(address_of(cell("ultraedit", LEARNS)))
    assert record is not None and lake.verify(record.address.cell_key) == []
    plain = replace(lake.result(record, tables=("answers",)), answers=())
    assert plain.answers == () and record.files["answers"]["rows"] == 60


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("answers=10", r"\(answers\): expected a mapping, found 10"),
        ("answers.sample=-1", "expected 0 or more, found -1"),
        ("answers.sample=some", r"\(answers.sample\): .*valid integer.*'all'"),
        ("answers.at=start", r"\(answers.at\): .*'end' or 'checkpoints'"),
        ("answers.edits=3", "unknown key 'edits'"),
    ],
)
def test_a_wrong_key_is_named_with_what_it_takes(value: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_grid(GRID, [value])
