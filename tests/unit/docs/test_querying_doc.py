"""docs/querying.md after `make demo` and `make demo-world`: all that it asks finds something."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import mlflow
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.parse import load_grid
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import cells_of
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellResult
from pipeline.results.query import Connection, connect, query
from pipeline.results.tracking.find_runs import find_runs
from pipeline.results.tracking.tracker import Tracker
from pipeline.results.tracking.uri import TrackingError
from rledit.errors import UserError
from tests.unit.helpers.demo_lake import GRIDS, demo_folder, grid_results
from tests.unit.helpers.lake_fixtures import address

DOCUMENT = (Path(__file__).parents[3] / "docs" / "querying.md").read_text()
QUESTIONS = re.findall(r"## (\d+\. .*?)\n.*?```sql\n(.*?)```\n\n```text\n(.*?)```", DOCUMENT, re.S)
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)
FILTERS = re.findall(r"^\| .*? \| `(.*[=>].*)` \|$", DOCUMENT, re.M)

DEMOS = ("demo", "demo-world")
HASH = {"demo": "c7f78bc3a06e", "demo-world": "652be610fb5e"}
KEY = "40157818ec118700"
# What the document says of the demo's names, and is called otherwise in demo-world.
IN_WORLD = {
    "'demo'": "'demo-world'", "smollm2-135m": "llama-world", "'facts'": "'world'",
    "'full'": "'world'", "'256'": "'128'", HASH["demo"]: HASH["demo-world"],
}  # fmt: skip
ONLY_WORLD = "'demo-world'"  # in a question that needs scores along the stream


def asked(text: str, grid: str) -> str:
    """A question or filter string with the names of a grid."""
    for name, other in IN_WORLD.items() if grid == "demo-world" else ():
        text = text.replace(name, other)
    return text


def results(grid: str) -> list[CellResult]:
    return grid_results(grid, HASH[grid] + "0" * 52, {"rledit": KEY})


@pytest.fixture(scope="module", params=[DEMOS[0], pytest.param(DEMOS[1], marks=pytest.mark.long)])
def grid(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def place(grid: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/lake and results/mlflow.db, as after `make` of a demo."""
    return demo_folder(tmp_path_factory.mktemp(grid), results(grid))


@pytest.fixture(scope="module")
def connection(place: Path) -> Iterator[Connection]:
    yield connect(str(place / "results" / "lake"))


def test_the_document_asks_a_dozen_questions() -> None:
    assert len(QUESTIONS) == DOCUMENT.count("```sql") >= 12
    assert len(SNIPPETS) == DOCUMENT.count("```python") == 5
    assert len(FILTERS) >= 12


@pytest.mark.parametrize(("title", "sql", "shown"), QUESTIONS, ids=[q[0] for q in QUESTIONS])
def test_a_question_is_answered(
    title: str, sql: str, shown: str, grid: str, connection: Connection
) -> None:
    if ONLY_WORLD in sql and grid != "demo-world":
        pytest.skip("the other demo has scores along the stream")
    answer = query(asked(sql, grid), connection)
    assert answer.rows, title
    assert tuple(shown.split("\n")[0].split()) == answer.columns
    # Every column says something, but for those that only a failure or a variant fills.
    for name, *values in zip(answer.columns, *answer.rows, strict=True):
        assert any(v is not None for v in values) or name == "reason", name
    # The printed answer has as many rows as the demo gives.
    if grid == "demo" or ONLY_WORLD in sql:
        printed = shown.strip().splitlines()[2:]
        assert printed[-1] == f"({len(printed) - 1} row{'s' * (len(printed) > 2)})"
        if not title.startswith(("7.", "15.")):  # of these the drawn numbers decide
            assert len(answer.rows) == len(printed) - 1


def test_the_answers_say_what_the_cells_say(grid: str, connection: Connection) -> None:
    """Questions 1, 2, 4 and 6, worked out by hand from the cells' own rows."""
    cells = {(r.address.editor, r.address.n_batches, r.address.variant): r for r in results(grid)}
    sqls = {title.partition(".")[0]: asked(sql, grid) for title, sql, _ in QUESTIONS}

    def final(editor: str, n: int, variant: str = "") -> Any:
        return next(row for row in cells[editor, n, variant].scores
                    if row["final"] and row["protocol"] == "token_accuracy")  # fmt: skip

    def edits(editor: str, n: int, protocol: str, variant: str = "") -> list[Any]:
        return [row for row in cells[editor, n, variant].edits if row["checkpoint"] == 10 * n
                and row["protocol"] == protocol and not row["superseded"]]  # fmt: skip

    for row in query(sqls["1"], connection).dicts():
        score = final(row["editor"], row["n_batches"], row["variant"])
        assert row["eff"] == pytest.approx(score["efficacy"], abs=0.051)
        by = [score[name] for name in ("efficacy", "generalization", "specificity")]
        assert row["mean"] == pytest.approx(mean(by), abs=0.051)
    for row in query(sqls["2"], connection).dicts():
        n = row["n_batches"]
        pairs = [a["efficacy"] - b["efficacy"] for a, b in zip(
            edits("rledit", n, "token_accuracy"), edits("malmen", n, "token_accuracy"), strict=True
        )]  # fmt: skip
        assert (row["seeds"], row["edits"]) == (1, len(pairs))
        assert row["eff_difference"] == pytest.approx(mean(pairs), abs=0.0051)
        assert row["eff_error"] == pytest.approx(stdev(pairs) / len(pairs) ** 0.5, abs=0.0051)
    for row in query(sqls["4"], connection).dicts():
        n = row["n_batches"]
        lost = (
            final("none", n)["specificity"] - final(row["editor"], n, row["variant"])["specificity"]
        )
        assert row["specificity_lost"] == pytest.approx(lost, abs=0.051)
    for row in query(sqls["6"], connection).dicts():
        n = row["n_batches"]
        rows = edits(row["editor"], n, "exact_match", row["variant"])
        early = [one["efficacy"] for one in rows if one["batch_index"] < n / 2]
        assert row["first_half"] == pytest.approx(mean(early), abs=0.051)


@pytest.mark.long
@pytest.mark.parametrize("grid", DEMOS[:1], indirect=True)
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.split()[1])
def test_a_snippet_runs(snippet: str, grid: str, place: Path) -> None:
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", asked(snippet.replace('"demo"', f'"{grid}"'), grid)],
        cwd=place, capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"} if "pipeline" in snippet else None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rledit" in done.stdout
    assert "ultraedit" in done.stdout or "pipeline" in snippet


@pytest.mark.parametrize("condition", FILTERS)
def test_a_filter_string_finds_runs(condition: str, grid: str, place: Path) -> None:
    if "metrics." in condition:
        condition = re.sub(r"> \d+", "> 1", condition)  # the drawn numbers are others
    if grid == "demo-world" and "'full'" in condition:
        condition = asked(condition, grid)
    mlflow.set_tracking_uri(f"sqlite:///{place / 'results' / 'mlflow.db'}")
    found = mlflow.search_runs(experiment_names=[grid], filter_string=asked(condition, grid))
    assert len(found) >= 1
    every = mlflow.search_runs(experiment_names=[grid])
    assert len(found) < len(every)


def test_what_failed_is_found(tmp_path: Path) -> None:
    assert "`tags.status = 'failed'` finds what failed" in DOCUMENT
    lake = Lake(str(tmp_path / "lake"))
    lake.record_failure(address(editor="ft"), "no memory", identity={}, code_version="0.1.0")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Tracker(uri, "demo", lake).rebuild(lake)
    (run,) = find_runs("demo", "tags.status = 'failed'", tracking=uri)
    assert run["tags.reason"] == "no memory"


def test_the_best_run_and_wrong_names_in_python(grid: str, place: Path) -> None:
    uri = f"sqlite:///{place / 'results' / 'mlflow.db'}"
    metric = "metrics.efficacy_token_accuracy"
    runs = find_runs(grid, "tags.status = 'done'", order_by=f"{metric} DESC", tracking=uri)
    values = [run[metric] for run in runs]
    assert values == sorted(values, reverse=True) and len(values) == len(results(grid))
    assert find_runs(grid, f"{metric} > 1000", tracking=uri) == []
    with pytest.raises(TrackingError, match="no editor 'unedited'; the unedited model's is 'none'"):
        find_runs(grid, "tags.editor = 'unedited'", tracking=uri)
    with pytest.raises(TrackingError, match="there is no n_batches '7'. There are: 20"):
        find_runs(grid, 'params.n_batches = "7"', tracking=uri)
    with pytest.raises(TrackingError, match="there is no tag 'editr'; did you mean 'editor'?"):
        find_runs(grid, "tags.`editr` = 'ft'", tracking=uri)
    with pytest.raises(TrackingError, match=f"of grid '{grid}s'; did you mean '{grid}'?"):
        find_runs(f"{grid}s", "tags.editor = 'ft'", tracking=uri)
    with pytest.raises(TrackingError, match="the tracking store failed .*Invalid"):
        find_runs(grid, "editor == ft", tracking=uri)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT * FROM runs WHERE grid = 'GRID' AND editor = 'unedited'",
         ["there is no editor 'unedited' in GRID; the unedited model's is 'none'. There are: al"]),
        ("SELECT avg(efficacy), count(*) FROM runs r WHERE grid='GRIDs' AND r.editor IN ('ft','m')",
         ["there is no grid 'GRIDs'; did you mean 'GRID'?", "there is no editor 'm'"]),
        ("SELECT 1 FROM curves WHERE metric = 'shift_norms' -- AND editor = 'x'",
         ["there is no metric 'shift_norms'; did you mean 'shift_norm'? There are: edit_seconds"]),
        ("SELECT 1 FROM runs WHERE dataset = 'it''s'", ["there is no dataset \"it's\". There are"]),
        ("SELECT 1 FROM runs WHERE efficacy > 1000 AND editor <> 'unedited'", []),
    ],
)  # fmt: skip
def test_a_query_that_finds_nothing_says_what_there_is(
    sql: str, said: list[str], grid: str, place: Path
) -> None:
    lake = str(place / "results" / "lake")
    told = CliRunner().invoke(app, ["query", sql.replace("GRID", grid), "--lake", lake])
    assert told.exit_code == 0, told.output
    lines = told.stderr.splitlines()
    assert len(lines) == len(said)
    for line, start in zip(lines, said, strict=True):
        assert line.startswith(start.replace("GRID", grid)), line
    found = CliRunner().invoke(app, ["query", "SELECT 1 WHERE 'x' = 'x'", "--lake", lake])
    assert found.stderr == ""


@pytest.mark.long
def test_hashes_and_key_of_the_document_are_those_of_the_demos() -> None:
    for name, digest in HASH.items():
        cells = cells_of(load_grid(GRIDS / f"{name}.yaml"))
        assert cells[0].source().data_hash.startswith(digest), name
    assert f"tags.data_hash LIKE '{HASH['demo']}%'" in DOCUMENT
    assert f"tags.cell = '{KEY}'" in DOCUMENT
    cells = cells_of(load_grid(GRIDS / "demo.yaml"))
    try:
        keys = {key_of(cell): cell.editor.editor for cell in cells}
    except UserError as error:
        pytest.skip(f"the demo's model is not here: {error}")
    assert keys.get(KEY) == "rledit", keys


def test_the_picture_is_there_and_small() -> None:
    (name,) = re.findall(r"!\[[^\]]*\]\(([\w-]+\.png)\)", DOCUMENT)
    picture = Path(__file__).parents[3] / "docs" / name
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 300_000
