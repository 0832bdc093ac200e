"""Questions in SQL: the views, the formats, and that no query changes a lake."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from pipeline.results.lake.lake import Lake
from pipeline.results.query import QueryError, connect, query, render, runs
from pipeline.results.tables import build_table
from tests.unit.helpers.lake_fixtures import RUN_COLUMNS, address, cell


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("query") / "lake"))
    lake.commit(cell())
    lake.commit(cell(editor="none", seed=1))
    lake.commit(cell(grid="other"))
    lake.record_failure(address(seed=2), "no memory", identity={"a": {"b": 3}}, code_version="1")
    return lake


def test_views_have_the_documented_columns(lake: Lake) -> None:
    assert query("SELECT * FROM runs", lake).columns == RUN_COLUMNS
    common = ("grid", "cell", "editor", "variant", "model", "dataset", "scale", "seed",
              "batch_size", "n_batches")  # fmt: skip
    for view in ("edits", "curves", "cells"):
        assert query(f"SELECT * FROM {view}", lake).columns[:10] == common


def test_runs_has_a_row_per_cell_protocol_and_checkpoint_and_one_per_failure(lake: Lake) -> None:
    rows = runs(lake, "demo", final=False)
    assert len(rows) == 2 * 2 * 2 + 1
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["seed"] for row in failed] == [2]
    assert all(failed[0][name] is None for name in ("protocol", "n_edits", "final", "efficacy"))
    assert [row["n_edits"] for row in runs(lake, "demo") if row["final"]] == [40] * 4
    given = {row["protocol"]: row for row in cell().scores if row["final"]}
    for row in runs(lake, "demo"):
        if row["editor"] == "rledit" and row["final"]:
            assert row["efficacy"] == given[row["protocol"]]["efficacy"]


def test_a_longer_stream_answers_for_the_shorter_it_was_scored_for(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))

    def commit(n_batches: int, also_after: list[int], editor: str = "ft") -> None:
        result = cell(editor=editor, n_batches=n_batches, checkpoints=4)
        identity = {**result.identity, "also_after": also_after}
        lake.commit(dataclasses.replace(result, identity=identity))

    commit(8, [2, 4])
    commit(12, [3, 6])
    commit(8, [], editor="rledit")
    commit(4, [], editor="rledit")
    found = {
        (row["editor"], row["n_batches"]): row
        for row in runs(lake, "demo")
        if row["protocol"] == "exact_match"
    }
    assert set(found) == {
        *(("ft", n) for n in (2, 3, 4, 6, 8, 12)), ("rledit", 4), ("rledit", 8)
    }  # fmt: skip
    scores = {
        row["n_edits"]: row["efficacy"]
        for row in cell(editor="ft", n_batches=8, checkpoints=4).scores
        if row["protocol"] == "exact_match"
    }
    for n in (2, 4, 8):
        row = found["ft", n]
        assert (row["n_edits"], row["final"], row["efficacy"]) == (10 * n, True, scores[10 * n])
    # What ran the stream itself comes first.
    commit(4, [])
    rows = [r for r in runs(lake, "demo") if (r["editor"], r["n_batches"]) == ("ft", 4)]
    assert {row["cell"] for row in rows} == {address(editor="ft", n_batches=4).cell_key}
    assert build_table(runs(lake, "demo"))


def test_edits_curves_and_settings_can_be_asked(lake: Lake) -> None:
    with connect(lake) as connection:
        assert query("SELECT count(*) FROM edits WHERE grid='other'", connection).rows == ((120,),)
        worst = query("SELECT min(efficacy) FROM edits WHERE NOT superseded", connection)
        assert worst.rows == ((0.0,),)
        steps = query(
            "SELECT step FROM curves WHERE metric='shift_norm' AND grid='demo' ORDER BY step",
            connection,
        )
        assert [row[0] for row in steps.rows] == [10, 20, 30, 40]
        asked = query(
            "SELECT identity->>'$.a.b', reason FROM cells WHERE status='failed'", connection
        )
        assert asked.rows == (("3", "no memory"),)


def test_an_empty_lake_has_views_without_rows(tmp_path: Path) -> None:
    for view in ("runs", "edits", "curves", "cells"):
        assert query(f"SELECT * FROM {view}", str(tmp_path)).rows == ()


@pytest.mark.parametrize("sql", ["SELEC 1", "", "-- nothing"])
def test_bad_sql_names_the_views_in_a_line(lake: Lake, sql: str) -> None:
    with pytest.raises(QueryError) as caught:
        query(sql, lake)
    last = str(caught.value).splitlines()[-1]
    assert last == (
        "Views: runs, edits, answers, free_answers, curves, cells; DESCRIBE runs lists the columns "
        "of one"
    )
    assert ("grid",) in [row[:1] for row in query("DESCRIBE runs", lake).rows]


@pytest.mark.parametrize("sql", ["SELECT eficacy FROM runs", "SELECT * FROM run"])
def test_an_unknown_name_lists_views_and_columns(lake: Lake, sql: str) -> None:
    with pytest.raises(QueryError) as caught:
        query(sql, lake)
    for expected in ("runs: grid, cell,", "edits: ", "curves: ", "cells: ", "efficacy"):
        assert expected in str(caught.value)


def test_a_missing_lake_is_named_and_nothing_is_created(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"no lake at .*nowhere.*--lake"):
        query("SELECT 1", str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{lake}/scores/x.parquet' (FORMAT parquet)",
        "COPY runs TO '{lake}/runs.csv'",
        "EXPORT DATABASE '{lake}/out'",
        "ATTACH '{lake}/x.db'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SET enable_external_access = true",
        "DELETE FROM lake_cells",
        "INSTALL httpfs",
    ],
)
def test_no_statement_reaches_a_file(lake: Lake, sql: str) -> None:
    before = lake.storage.sizes()
    with pytest.raises(QueryError):
        query(sql.format(lake=lake.storage.local_path()), lake)
    assert lake.storage.sizes() == before


def test_python_variables_are_not_tables(lake: Lake) -> None:
    secret = lake.dataset("cells", lake.manifest())
    assert secret.num_rows == 4
    with pytest.raises(QueryError):
        query("SELECT * FROM secret", lake)


def test_formats(lake: Lake) -> None:
    result = query(
        "SELECT editor, seed, CASE WHEN seed = 0 THEN 0.1 + 0.2e0 END AS x, 'a,\"b' AS t, "
        "'nan'::DOUBLE AS n, max(finished_at) AS f FROM cells WHERE grid='demo' AND status='done' "
        "GROUP BY ALL ORDER BY seed",
        lake,
    )
    rows = json.loads(render(result, "json"))
    assert rows[0]["x"] == 0.1 + 0.2 and rows[1]["x"] is None and rows[0]["n"] == "nan"
    assert rows[0]["f"] == "2026-01-02T03:05:05"
    parsed = list(csv.DictReader(io.StringIO(render(result, "csv"))))
    assert float(parsed[0]["x"]) == 0.1 + 0.2 and parsed[1]["x"] == "" and parsed[0]["t"] == 'a,"b'
    lines = render(result, "table").splitlines()
    assert lines[0].split() == ["editor", "seed", "x", "t", "n", "f"] and lines[-1] == "(2 rows)"
    with pytest.raises(QueryError, match="table, csv, json"):
        render(result, "xml")


def test_quotes_in_a_grid_name_are_data(lake: Lake) -> None:
    assert runs(lake, "x' OR 1=1 --") == []


def test_columns_of_one_name_are_numbered_and_decimals_are_numbers(lake: Lake) -> None:
    result = query("SELECT 1.5 AS a, 2 AS a, 3 AS a_1, [0.25] AS b", lake)
    assert result.columns == ("a", "a_2", "a_1", "b")
    assert json.loads(render(result, "json")) == [{"a": 1.5, "a_2": 2, "a_1": 3, "b": [0.25]}]


def test_a_time_with_a_time_zone_has_a_message(lake: Lake) -> None:
    try:
        query("SELECT [now()]", lake)
    except QueryError as error:  # without pytz
        assert str(error).startswith("a time with a time zone cannot be shown: CAST it")
    query("SELECT CAST(now() AS TIMESTAMP), CAST(now() AS VARCHAR)", lake)
