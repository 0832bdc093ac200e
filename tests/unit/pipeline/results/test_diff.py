"""`diff_lakes`: what it must find, what it must ignore, and that it says by which rule."""

from __future__ import annotations

import dataclasses
import math
import uuid
from typing import Any

import numpy as np
import pytest

from pipeline.results.diff import DiffReport, diff_lakes
from pipeline.results.lake.lake import Lake, LakeError
from pipeline.results.lake.records import CellResult
from tests.unit.helpers.lake_fixtures import cell


def lake_of(*results: CellResult) -> Lake:
    lake = Lake(f"memory://{uuid.uuid4()}")
    for result in results:
        lake.commit(result)
    return lake


def diff(a: CellResult, b: CellResult) -> DiffReport:
    return diff_lakes(lake_of(a), lake_of(b))


def with_value(result: CellResult, table: str, index: int, **values: Any) -> CellResult:
    rows = [dict(row) for row in getattr(result, table)]
    rows[index] |= values
    return dataclasses.replace(result, **{table: rows})


def nudged(result: CellResult, factor: float) -> CellResult:
    rows = [dict(row) for row in result.scores]
    for row in rows:
        row["specificity"] *= factor
    return dataclasses.replace(result, scores=rows)


def test_equal_lakes_are_equal_bitwise() -> None:
    report = diff(cell(), cell())
    assert report.equal and report.n_differences == 0 and report.lines == ()
    assert "bitwise for 1 cells" in report.rule and "1e-05 for" not in report.rule
    assert str(report).endswith("result: equal")


def test_times_memory_and_versions_are_aside() -> None:
    result = cell()
    index = next(i for i, row in enumerate(result.steps) if row["metric"] == "edit_seconds")
    other = dataclasses.replace(
        with_value(result, "steps", index, value=99.0),
        train_seconds=1.0,
        edit_seconds=2.0,
        edit_ms=3.0,
        score_seconds=4.0,
        peak_memory_gb=5.0,
        started_at=None,
        finished_at=None,
        versions={"torch": "9"},
        resolved={"workers": 7},
    )
    assert diff(result, other).equal


def test_one_bit_counts_between_equal_threads_and_ranks() -> None:
    result = cell()
    near = math.nextafter(result.scores[0]["efficacy"], math.inf)
    report = diff(result, with_value(result, "scores", 0, efficacy=near))
    assert not report.equal and report.n_differences == 1
    (line,) = report.lines
    for part in (result.address.cell_key, "scores.efficacy", "checkpoint=20",
                 "protocol=token_accuracy", repr(near)):  # fmt: skip
        assert part in line


@pytest.mark.parametrize("changes", [{"threads": 2}, {"ranks": 2}])
@pytest.mark.parametrize(("factor", "equal"), [(1 + 9e-6, True), (1 + 2e-5, False)])
def test_other_threads_or_ranks_are_compared_to_1e_5(
    changes: dict[str, int], factor: float, equal: bool
) -> None:
    report = diff(cell(), nudged(dataclasses.replace(cell(), **changes), factor))
    assert report.equal is equal
    assert "to 1e-05 for 1 cells" in report.rule and "bitwise" not in report.rule


def test_cells_whose_keys_differ_by_threads_only_are_matched() -> None:
    result = cell()
    other = dataclasses.replace(
        result,
        address=dataclasses.replace(result.address, cell_key="another-key"),
        identity={**result.identity, "threads": 2},
        threads=2,
    )
    assert diff(result, other).equal
    third = dataclasses.replace(other, identity={**other.identity, "seed": 9})
    report = diff(result, third)
    assert not report.equal and report.n_differences == 2
    both = diff_lakes(lake_of(result, other), lake_of(result))
    assert not both.equal and "in A and not in B" in both.lines[0]


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("edits", "superseded", True),
        ("edits", "edit_id", "another"),
        ("edits", "specificity", None),
        ("scores", "n_scored", 3),
        ("scores", "final", True),
        ("steps", "value", 0.123),
        ("steps", "value", math.nan),
    ],
)
def test_every_column_is_compared(table: str, column: str, value: Any) -> None:
    result = cell()
    report = diff(result, with_value(result, table, 0, **{column: value}))
    assert report.n_differences == 1 and f"{table}.{column}" in report.lines[0]


@pytest.mark.parametrize(
    ("column", "value"),
    [("data_hash", "x"), ("model_hash", None), ("n_edits", 1), ("n_contradicting", 2),
     ("identity", {"a": 1}), ("protocols", ("choice",))],
)  # fmt: skip
def test_the_manifest_is_compared(column: str, value: Any) -> None:
    report = diff(cell(), dataclasses.replace(cell(), **{column: value}))
    assert report.n_differences == 1 and f"cells.{column}" in report.lines[0]


def test_nan_equals_nan() -> None:
    result = with_value(cell(), "steps", 0, value=math.nan)
    assert diff(result, result).equal


@pytest.mark.parametrize("table", ["edits", "scores", "steps"])
def test_missing_rows_are_named(table: str) -> None:
    result = cell()
    short = dataclasses.replace(result, **{table: getattr(result, table)[1:]})
    for report, name in ((diff(result, short), "A"), (diff(short, result), "B")):
        assert not report.equal
        assert f"in {name}, not in" in report.lines[0] and table in report.lines[0]


def test_missing_and_failed_cells_are_named() -> None:
    result, other = cell(), cell(seed=1)
    a, b = lake_of(result, other), lake_of(result)
    assert "seed 1) is in A and not in B" in diff_lakes(a, b).lines[0]
    b.record_failure(other.address, "died", identity=other.identity, code_version="1")
    report = diff_lakes(a, b)
    assert report.lines[0].endswith("cells.status: A 'done', B 'failed'")
    assert report.n_differences == 1


def test_lakes_without_results_are_not_equal(tmp_path: Any) -> None:
    report = diff_lakes(Lake(str(tmp_path)), Lake(str(tmp_path)))
    assert not report.equal and "no finished cell" in report.lines[0]
    with pytest.raises(LakeError, match="there is no lake at"):
        diff_lakes(Lake(str(tmp_path)), Lake(str(tmp_path / "nowhere")))


def test_a_shard_that_its_manifest_does_not_describe_is_an_error() -> None:
    """Same size, other bytes: no comparison of rows would be one of the results."""
    lake, other = lake_of(cell()), lake_of(cell())
    (record,) = lake.manifest()
    path = record.files["edits"]["path"]
    data = lake.storage.read_bytes(path)
    lake.storage.write_bytes(path, data[:-9] + bytes(byte ^ 1 for byte in data[-9:]))
    with pytest.raises(LakeError, match="edits shard has sha256"):
        diff_lakes(lake, other)


def test_a_code_version_is_noted_and_not_judged() -> None:
    report = diff(cell(), dataclasses.replace(cell(), code_version="2"))
    assert report.equal and "code_version differs for 1 cells" in report.lines[-1]


def test_many_differences_are_counted() -> None:
    report = diff(cell(), cell(noise=1))
    assert not report.equal and report.n_differences > 20
    assert sum(line.startswith("cell ") for line in report.lines) == 20
    counted = [line for line in report.lines if line.startswith("  ")]
    assert sum(int(line.rsplit(" ", 1)[1]) for line in counted) == report.n_differences


def test_a_negative_zero_is_another_value() -> None:
    result = with_value(cell(), "steps", 0, value=0.0)
    assert not diff(result, with_value(result, "steps", 0, value=float(np.float64(-0.0)))).equal
