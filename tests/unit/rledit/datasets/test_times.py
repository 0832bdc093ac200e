"""Streams in the order of time steps, which rows or names of files say; several files as one."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from rledit.datasets import DatasetError, FileEditSource, RowErrors, check_paths, read_edits
from rledit.datasets.times import in_order, steps, time_of_file

DAYS = ("20240220_20240301", "20240201_20240220", "20240301_20240320")


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Ferry {i} sails from", "target": f"harbour {i}", **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def targets(source: FileEditSource, n: int | None = None, seed: int = 0) -> list[str]:
    size = source.sizes()["evaluation"] if n is None else n
    return [edit.target.split()[-1] for edit in source.draw("evaluation", size, seed)]


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("data/wiki_big_edit_20240201_20240220.json", "20240201_20240220"),
        ("20240201-20240220.parquet", "20240201_20240220"),
        ("20240220_20240201.json", None),  # not an interval
        ("20241301_20241320.json", None),  # not days
        ("20240201_20240220/edits.json", None),  # the folder's
        ("120240201_20240220.json", None),
        ("edits.json", None),
    ],
)
def test_a_file_is_dated_by_an_interval_in_its_name(name: str, time: str | None) -> None:
    assert time_of_file(name) == time


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ([3, 1, 2], "1 2 0"),
        (["10", "9", "1.5"], "2 1 0"),  # numbers, not texts
        (["2024-02", "2023", "2024-02-01T10:00:00Z"], "1 0 2"),
        (["+2021-05-01T00:00:00Z", "1998-01-01", "20100101"], "1 2 0"),
        (["2024-01-01", "2024-01-01", "2023-01-01"], "2 0 1"),  # of one time: as written
        (["2024-02-01", "2024-2-3", "2024-01-31"], "2 0 1"),
        (["2024/10/1", "2024/9/30", "2024/9"], "2 1 0"),
        (["2024-02-01 10:00", "2024-02-01 9:30", "2024-02-01T09:15"], "2 1 0"),
        (["20240201_20240220", "20240201", "202401"], "2 1 0"),
    ],
)
def test_rows_come_in_the_order_of_their_time(times: list[Any], order: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [row(i, time_step=t) for i, t in enumerate(times)])
    source = FileEditSource(evaluation=path, order="time")
    assert " ".join(targets(source)) == order
    assert targets(source, seed=5) == targets(source) and targets(source, 2) == order.split()[:2]
    assert "time_step" not in read_edits(path).unread


def test_files_follow_on_each_other_and_go_by_the_time_in_their_names(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"wiki_{day}.json", [row(10 * i + j) for j in range(2)])
        for i, day in enumerate(DAYS)
    ]
    listed = FileEditSource(evaluation=paths, order="file")
    assert targets(listed) == ["0", "1", "10", "11", "20", "21"]
    assert listed.origin("evaluation") == (
        "all 6 edits of wiki_20240220_20240301.json and 2 more files"
    )
    ids = [edit.edit_id for edit in listed.draw("evaluation", 6, 0)]
    assert len(set(ids)) == 6
    timed = FileEditSource(evaluation=paths, order="time")
    assert targets(timed) == ["10", "11", "0", "1", "20", "21"]
    assert timed.steps("evaluation") == sorted(DAYS)
    assert len({listed.data_hash, timed.data_hash,
                FileEditSource(evaluation=paths[::-1], order="file").data_hash}) == 3  # fmt: skip
    assert sorted(targets(FileEditSource(evaluation=paths))) == sorted(targets(listed))


def test_another_name_of_a_file_is_another_order_and_another_hash(tmp_path: Path) -> None:
    one = [write(tmp_path / f"a_{day}.json", [row(i)]) for i, day in enumerate(DAYS[:2])]
    other = [write(tmp_path / f"b_{day}.json", [row(i)]) for i, day in enumerate(DAYS[1::-1])]
    sources = [FileEditSource(evaluation=paths, order="time") for paths in (one, other)]
    assert [targets(source) for source in sources] == [["1", "0"], ["0", "1"]]
    assert sources[0].data_hash != sources[1].data_hash
    assert sources[0].file_hashes == sources[1].file_hashes


def test_rows_without_a_time_cannot_be_ordered_by_it(tmp_path: Path) -> None:
    rows = [row(0, date="2024-01-01"), row(1), row(2, date="soon"), row(3, date=None)]
    path = write(tmp_path / "a.json", rows)
    with pytest.raises(DatasetError) as caught:
        FileEditSource(evaluation=path, order="time")
    assert str(caught.value) == (
        "order: time, and 3 of the 4 edits of the evaluation pool (all 4 edits of a.json) have no "
        "time step: a.json:2, a.json:3, a.json:4; give every row a number or a date under "
        "time_step, timestep, time, timestamp, date, all of one kind, name files by their interval "
        "(…_20240201_20240220.json), or take order: file"
    )
    assert read_edits(path).unread == {"date": 1}  # "soon" is no time, and said to be unread
    assert FileEditSource(evaluation=path).sizes()["evaluation"] == 4  # nothing asks for a time
    mixed = write(tmp_path / "b.json", [row(0, time=3), row(1, time="2024-01-01")])
    with pytest.raises(DatasetError, match=r"1 of the 2 edits .* b.json:1"):
        FileEditSource(evaluation=mixed, order="time")


@pytest.mark.parametrize(
    "time", ["2024-Feb-01", "2024-02-01-x", "2024-02-001", "2024-13-1", "20245"]
)
def test_a_date_that_is_read_in_part_is_none(tmp_path: Path, time: str) -> None:
    path = write(tmp_path / "a.json", [row(0, date=time), row(1, date="2024-01-03")])
    with pytest.raises(DatasetError, match=r"1 of the 2 edits .* no time step: a.json:1"):
        FileEditSource(evaluation=path, order="time")


def test_dates_of_parquet_and_data_frames_are_times() -> None:
    days = [datetime.date(2024, 2, 1), datetime.datetime(2024, 1, 31, 9), "2024-01-30"]
    rows = [row(i, date=day) for i, day in enumerate(days)]
    report = read_edits("a.parquet", rows=rows)
    assert [edit.time for edit in in_order(report.edits)[0]] == [
        "2024-01-30", "2024-01-31T09:00:00", "2024-02-01",
    ]  # fmt: skip
    assert not report.unread


def test_a_train_pool_needs_no_time(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", [row(i) for i in (7, 6)])
    edits = write(tmp_path / "a.json", [row(1, time=2), row(2, time=1)])
    source = FileEditSource(train=train, evaluation=edits, order="time")
    assert targets(source) == ["2", "1"]
    assert [edit.target for edit in source.draw("train", 2, 0)] == ["harbour 7", "harbour 6"]


def test_bad_rows_of_several_files_are_named_together(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.json", [row(0), {"prompt": name}]) for name in "ab"]
    with pytest.raises(RowErrors) as caught:
        FileEditSource(evaluation=paths)
    assert [error.file for error in caught.value.errors] == [str(path) for path in paths]


def test_the_check_says_whether_rows_are_in_order(tmp_path: Path) -> None:
    def said(name: str, *times: Any) -> str:
        path = write(tmp_path / name, [row(i, time=t) for i, t in enumerate(times)])
        (line,) = [line for line in check_paths([path])[0] if line.startswith("  time")]
        return line

    assert said("a.json", 1, 2, 2) == "  time      2 steps, 1 to 2; the rows are in that order"
    assert said("b.json", 2, 1) == (
        "  time      2 steps, 1 to 2; the rows are not in their order, which begins with 1"
    )
    assert said("c.json", 1, None) == (
        "  time      1; 1 edits have no usable one: no order by time"
    )
    assert said("d_20240201_20240220.json", None, None) == (
        "  time      20240201_20240220, of all edits"
    )


def test_steps_are_in_order() -> None:
    edits = read_edits("a.json", rows=[row(i, time=t) for i, t in enumerate((10, 9, 10))]).edits
    assert steps(edits) == ["9", "10"]
    found, without = in_order(edits)
    assert [edit.time for edit in found] == ["9", "10", "10"] and not without
