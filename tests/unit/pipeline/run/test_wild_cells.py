"""Cells scored on free answers, from their settings to a judge's verdicts in the tables."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cell_keys import identity_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.estimate.judge import judge_lines
from pipeline.plan.preflight import check_tokenizer
from pipeline.results.judge.endpoint import Endpoint, Judge, JudgeError
from pipeline.results.judge.gate import CASES
from pipeline.results.judge.judging import judge_grid
from pipeline.results.lake.lake import Lake
from pipeline.results.query import runs
from pipeline.run.cache import Cache
from pipeline.run.cell import run_cell
from pipeline.run.reporting import Stage, silent
from pipeline.run.stages import edit
from tests.unit.helpers.judge_server import honest, judge_server
from tests.unit.helpers.prepared import prepared_model

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"
LEARNS = "editors.ultraedit.settings.step=0.05"
WILD = "protocols=[exact_match, wild, wild_judge]"


class Interrupted(Exception):
    """Stands for a killed process."""


def cell(editor: str, *overrides: str) -> Cell:
    return next(c for c in cells_of(load_grid(GRID, overrides)) if c.editor.editor == editor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_model(cell("none"), Cache(tmp_path_factory.mktemp("models")))


def test_the_form_of_free_answers_is_identity_where_some_are_asked_for() -> None:
    form = ("wild.context=instruction", "wild.full_stop=false")
    assert key_of(cell("none")) == key_of(cell("none", *form))
    assert "wild" not in identity_of(cell("none", WILD))
    own = cell("none", WILD, *form)
    assert identity_of(own)["wild"] == {"context": "instruction", "full_stop": False}
    assert key_of(own) != key_of(cell("none", WILD))
    with pytest.raises(ConfigError, match=r"wild\.context"):
        load_grid(GRID, ["wild.context=poem"])


def test_a_chat_without_a_template_is_refused_before_the_run() -> None:
    problem = check_tokenizer(cell("none", WILD, "wild.context=chat"))
    assert problem is not None and "wild.context chat" in problem and "no chat template" in problem
    assert check_tokenizer(cell("none", WILD)) is None
    assert check_tokenizer(cell("none", "wild.context=chat")) is None  # nothing asks for it


def test_a_stream_keeps_its_free_answers_and_they_survive_an_interruption(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = cell("ultraedit", LEARNS, WILD)
    straight = edit.edit_stream(chosen, folder, Cache(tmp_path / "a"), None, silent)
    rows = straight.free_answers
    count = {n: len({r["edit_index"] for r in rows if r["checkpoint"] == n}) for n in (0, 4, 8, 12)}
    assert count == {0: 12, 4: 4, 8: 8, 12: 12}
    wild = {
        (r["checkpoint"], r["edit_index"]): r["efficacy"]
        for r in straight.edits
        if r["protocol"] == "wild"
    }
    own = {(r["checkpoint"], r["edit_index"]): r for r in rows if r["probe"] == "edit"}
    assert wild and all(100.0 * own[place]["matches"] == score for place, score in wild.items())
    assert {r["answer"] for r in rows if r["checkpoint"] == 0} != {
        r["answer"] for r in rows if r["checkpoint"] == 12
    }

    def until_the_second_batch(stage: Stage, done: int, total: int) -> None:
        if done == 2:
            raise Interrupted

    monkeypatch.setattr(edit, "SAVE_EVERY_SECONDS", 0.0)
    cache = Cache(tmp_path / "b")
    with pytest.raises(Interrupted):
        edit.edit_stream(chosen, folder, cache, None, until_the_second_batch)
    resumed = edit.edit_stream(chosen, folder, cache, None, silent)
    assert (resumed.free_answers, resumed.edits) == (rows, straight.edits)
    # What the unedited model says lies in the cache by now, for every other editor.
    again = edit.edit_stream(cell("none", WILD), folder, cache, None, silent)
    assert [r for r in again.free_answers if not r["checkpoint"]] == [
        r for r in rows if not r["checkpoint"]
    ]


@pytest.fixture(scope="module")
def ran(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder whose lake has two cells that wait for a judge."""
    results = tmp_path_factory.mktemp("ran")
    for editor in ("ultraedit", "none"):
        chosen = cell(editor, LEARNS, WILD)
        run_cell(chosen, folder, None, Cache(results / "own"), Lake(str(results / "lake")), silent)
    return results


@pytest.fixture
def results(ran: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran, tmp_path / "results"))


def test_a_judge_that_compares_texts_scores_as_wild_and_asks_no_more_than_planned(
    results: Path,
) -> None:
    cells = [cell("ultraedit", LEARNS, WILD), cell("none", LEARNS, WILD)]
    assert judge_lines([cell("none")]) == []
    (line,) = judge_lines(cells)
    # Before the first edit twelve, then four, eight and twelve; a prompt and a rephrase of each.
    most = len(CASES) + len(cells) * 2 * (12 + 4 + 8 + 12)
    assert f"at most {most} calls" in line and f"{4 * most:,} out" in line
    lake = Lake(str(results / "lake"))
    before = scores(lake)
    assert {row["efficacy"] for (_, name, _), row in before.items() if name == "wild_judge"} == {
        None
    }
    with judge_server() as server:
        judge = Judge(Endpoint(url=server.url, model="grader"))
        found = judge_grid(lake, cells[0].grid, judge)
        tokens = sum(len(body["messages"][1]["content"]) / 4 for body in server.requests)
    assert 0 < found.asked + len(CASES) <= most and found.agreement == 100.0
    planned = float(line.split(" tokens in")[0].split()[-1].replace(",", ""))
    assert tokens <= planned
    after = scores(lake)
    for (editor, protocol, n), row in after.items():
        if protocol == "wild_judge":
            wild = after[editor, "wild", n]
            assert row["efficacy"] == pytest.approx(wild["efficacy"])
            assert row["generalization"] == pytest.approx(wild["generalization"])
            assert row["specificity"] is None
            assert row["specificity_self"] == wild["specificity_self"]
        else:
            assert row == before[editor, protocol, n]


def test_a_run_judges_where_it_is_told_to_and_sends_nothing_otherwise(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.driver.run_plan", lambda *_: 0)  # all cells are done
    monkeypatch.setattr("pipeline.cli.grids.write_report_files", lambda *_: "page")  # drawn slowly
    editors = "editors=[{editor: none}, {editor: ultraedit, settings: {step: 0.05}}]"
    arguments = [str(GRID), "--set", editors, "--set", WILD, "--results", str(results)]

    def run(*more: str) -> tuple[str, BaseException | None]:
        found = CliRunner().invoke(app, ["run", *arguments, *more])
        return " ".join(found.output.split()), found.exception

    with judge_server() as server:
        output, _ = run()
        advice = f"judge tiny --judge URL --model MODEL --results {results}"
        assert "the answers of 2 cells are not judged yet: " in output and advice in output
        assert not server.requests
        _, error = run("--judge", server.url)
        assert isinstance(error, JudgeError) and "--judge-model" in str(error)
        planned = CliRunner().invoke(app, ["plan", *arguments]).output
        assert "judge: the answers of 2 finished cells are not judged yet" in planned
        planned = CliRunner().invoke(app, ["plan", *arguments, "--lake", f"{results}/new"]).output
        assert "judge: at most" in planned and "nothing is sent without --judge" in planned
        assert not server.requests
        output, error = run("--judge", server.url, "--judge-model", "grader")
        assert error is None and "judge is the language model grader" in output
        assert "not judged yet" not in output
        n = len(server.requests)
        run("--judge", server.url, "--judge-model", "grader")
        assert len(server.requests) == n > len(CASES)


@pytest.mark.long
def test_a_key_is_in_no_file_of_a_run_that_judges_and_in_nothing_it_says(
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Lake, MLflow store, report and the record of the command, where a judge repeats the key."""
    caplog.set_level(logging.DEBUG)
    key = "sk-very/secret+0123456789"
    monkeypatch.setenv("OWN_JUDGE_SETTING", key)  # no name that hides secrets by itself
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    gate = {case.asked.question for case in CASES}

    def reply(question: str, gold: str, answer: str) -> str:
        return honest(question, gold, answer) if question in gate else f"key {key}"

    editors = "editors=[{editor: none}, {editor: ultraedit, settings: {step: 0.05}}]"
    arguments = ["run", str(GRID), "--set", editors, "--set", WILD, "--results", str(results)]
    arguments += ["--judge-model", "grader", "--judge-key-variable", "OWN_JUDGE_SETTING"]
    with judge_server(reply=reply) as server:
        found = CliRunner().invoke(app, [*arguments, "--judge", server.url])
        assert found.exception is None, found.output
        assert set(server.keys) == {f"Bearer {key}"} and len(server.requests) > len(CASES)
    files = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert {"mlflow.db", "tiny.html"} <= {path.name for path in files}
    tables = [str(pq.read_table(p).to_pylist()) for p in files if p.suffix == ".parquet"]
    assert any("key ***" in text for text in tables)
    out, err = capfd.readouterr()
    said = "".join([found.output, out, err, caplog.text, *tables])
    for part in (key, key[:8], key[-8:]):
        assert part not in said
        assert [path for path, data in files.items() if part.encode() in data] == []


def test_a_judge_that_is_none_is_refused_before_a_run_computes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []

    def noting(*arguments: object) -> int:
        begun.append(arguments)
        raise Interrupted

    monkeypatch.setattr("pipeline.run.driver.run_plan", noting)
    plain = ["run", str(GRID), "--set", "editors=[{editor: none}]", "--results", str(tmp_path)]
    plain += ["--judge-model", "grader"]
    arguments = [*plain, "--set", WILD]
    with judge_server(reply=lambda *_: "It depends.") as nonsense:
        found = CliRunner().invoke(app, [*arguments, "--judge", nonsense.url])
        assert isinstance(found.exception, JudgeError) and "grader" in str(found.exception)
        assert not begun and len(nonsense.requests) == len(CASES)
    with judge_server() as server:
        found = CliRunner().invoke(app, [*arguments, "--judge", server.url])
        assert isinstance(found.exception, Interrupted) and len(begun) == 1
        assert len(server.requests) == len(CASES)  # and nothing of the grid yet
    # A grid that has nothing to judge asks nobody.
    with judge_server() as server:
        found = CliRunner().invoke(app, [*plain, "--judge", server.url])
        assert isinstance(found.exception, Interrupted) and not server.requests


def scores(lake: Lake) -> dict[tuple[str, str, int], dict[str, Any]]:
    names = ("efficacy", "generalization", "specificity", "specificity_self")
    return {
        (r["editor"], r["protocol"], r["n_edits"]): {name: r[name] for name in names}
        for r in runs(lake, "tiny", final=False)
    }
