"""docs/querying.md: every question is asked, every snippet run, every filter string searched."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellResult
from pipeline.results.query import Connection, connect, query
from pipeline.results.tracking.tracker import Tracker
from tests.unit.helpers.lake_fixtures import address, demo_cells

DOCUMENT = (Path(__file__).parents[3] / "docs" / "querying.md").read_text()
QUESTIONS = re.findall(r"## (\d+\. .*?)\n.*?```sql\n(.*?)```\n\n```text\n(.*?)```", DOCUMENT, re.S)
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)
FILTERS = re.findall(r"^\| .*? \| `(.*[=>].*)` \|$", DOCUMENT, re.M)

HASH = "652be610fb5e" + "0" * 52
KEY = "44178bac16a782d4"
SETTINGS = {"rank": 128, "meta_lr": 1e-5, "train_steps": 10}


def results() -> list[CellResult]:
    """The demo's editors and streams, with hashes and settings as the document names them."""
    found = [
        dataclasses.replace(result, data_hash=HASH, resolved={"settings": SETTINGS})
        for result in demo_cells(
            grid="demo-world-full", model="llama-world", seeds=2, streams=(20, 40), checkpoints=2
        )
    ]
    long = next(r for r in found if r.address.editor == "rledit" and r.address.n_batches == 40)
    named = dataclasses.replace(long, address=dataclasses.replace(long.address, cell_key=KEY))
    return [named if result is long else result for result in found]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/lake and results/mlflow.db, as after a run."""
    folder = tmp_path_factory.mktemp("asked")
    lake = Lake(str(folder / "results" / "lake"))
    failed = address(grid="demo-world-full", model="llama-world", editor="ft", variant="big")
    lake.record_failure(failed, "CUDA out of memory", identity={}, code_version="0.1.0")
    for result in results():
        lake.commit(result)
    tracker = Tracker(f"sqlite:///{folder / 'results' / 'mlflow.db'}", "demo-world-full")
    parent = tracker.start("run demo-world-full")
    few = [r for r in results() if r.address.seed == 0 and r.address.n_batches == 40]
    full = dataclasses.replace(few[0].address, scale="full", cell_key="full-0")
    for result in (*few, dataclasses.replace(few[0], address=full)):
        tracker.log_cell(parent, result)
    record = lake.record(failed.cell_key)
    assert record is not None
    tracker.log_cell(parent, lake.result(record))
    tracker.finish(parent)
    return folder


@pytest.fixture(scope="module")
def connection(place: Path) -> Iterator[Connection]:
    yield connect(str(place / "results" / "lake"))


def test_the_document_asks_a_dozen_questions() -> None:
    assert len(QUESTIONS) == DOCUMENT.count("```sql") >= 12
    assert len(SNIPPETS) == DOCUMENT.count("```python") == 4
    assert len(FILTERS) >= 12


@pytest.mark.parametrize(("title", "sql", "shown"), QUESTIONS, ids=[q[0] for q in QUESTIONS])
def test_a_question_is_answered(title: str, sql: str, shown: str, connection: Connection) -> None:
    answer = query(sql, connection)
    assert answer.rows, title
    # Some column of every row says something, and the columns are those of the printed answer.
    assert all(any(value is not None for value in row) for row in answer.rows)
    assert tuple(shown.split("\n")[0].split()) == answer.columns


def test_the_answers_of_the_document_say_what_the_lake_says(connection: Connection) -> None:
    """The paired difference of question 2, worked out by hand from rows of `runs`."""
    rows = query(
        "SELECT editor, seed, n_batches, efficacy FROM runs WHERE final AND "
        "protocol = 'token_accuracy' AND editor IN ('rledit', 'malmen') AND scale = 'world'",
        connection,
    ).rows
    by = {(editor, seed, n): value for editor, seed, n, value in rows}
    sql = next(sql for title, sql, _ in QUESTIONS if title.startswith("2."))
    for row in query(sql, connection).dicts():
        n = row["n_batches"]
        pairs = [by["rledit", seed, n] - by["malmen", seed, n] for seed in (0, 1)]
        assert row["seeds"] == 2
        assert row["eff_difference"] == pytest.approx(sum(pairs) / 2, abs=0.006)


@pytest.mark.long
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.split()[1])
def test_a_snippet_runs_without_our_code(snippet: str, place: Path) -> None:
    assert "pipeline" not in snippet
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=place, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "rledit" in done.stdout and "ultraedit" in done.stdout


@pytest.mark.parametrize("condition", FILTERS)
def test_a_filter_string_finds_runs(condition: str, place: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{place / 'results' / 'mlflow.db'}")
    found = mlflow.search_runs(experiment_names=["demo-world-full"], filter_string=condition)
    assert len(found) >= 1
    every = mlflow.search_runs(experiment_names=["demo-world-full"])
    assert len(found) < len(every)
