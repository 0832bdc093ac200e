"""Opening files: rows and their numbers, and one clear message for everything that is no data."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rledit.datasets import FORMATS, DataFileError, RowErrors, open_rows, read_edits
from rledit.datasets.rows import parse_rows

ROW = dict(FORMATS["zsre_malmen"].example)


def write(path: Path, content: bytes | str | list[Any]) -> Path:
    if isinstance(content, list):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_array_and_jsonl_give_the_same_edits_and_the_bytes_hash(tmp_path: Path) -> None:
    array = write(tmp_path / "a.json", [ROW, ROW])
    lines = write(tmp_path / "a.jsonl", jsonl(ROW, ROW))
    one, other = read_edits(array), read_edits(lines)
    assert [e.prompt for e in one.edits] == [e.prompt for e in other.edits]
    assert one.n_rows == other.n_rows == 2 and one.format == other.format == "zsre_malmen"
    assert one.data_hash == hashlib.sha256(array.read_bytes()).hexdigest() != other.data_hash


def test_rows_are_numbered_from_one_and_lines_by_their_line(tmp_path: Path) -> None:
    text = "\n" + jsonl(ROW) + "\n" + jsonl(ROW)
    report = read_edits(write(tmp_path / "a.jsonl", text))
    assert [edit.source for edit in report.edits] == ["a.jsonl:2", "a.jsonl:4"]
    report = read_edits(write(tmp_path / "a.json", [ROW, ROW]))
    assert [edit.source for edit in report.edits] == ["a.json:1", "a.json:2"]


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path: Path) -> None:
    row = {**ROW, "ans": "a\u2028b"}
    text = json.dumps(row, ensure_ascii=False) + "\n"
    assert read_edits(write(tmp_path / "a.jsonl", text)).edits[0].target == "a\u2028b"


def test_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b"\xef\xbb\xbf" + json.dumps([ROW]).encode())
    assert len(read_edits(path).edits) == 1


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
ARRAY = json.dumps([ROW] * 3)
LATIN = json.dumps([ROW, {**ROW, "ans": "café"}], ensure_ascii=False).encode("latin-1")
BAD_FILES: dict[str, tuple[bytes | str, str]] = {
    "pointer": (POINTER, "git-lfs pointer.*git lfs pull"),
    "parquet": (b"PAR1\x15\x04", "Parquet file.*pipeline"),
    "gzip": (gzip.compress(b"[]"), "gzip"),
    "html": ("<!DOCTYPE html><html></html>", "HTML page.*token"),
    "empty": ("", "is empty"),
    "blank": (" \n\n", "is empty"),
    "no rows": ("[]", "holds no rows"),
    "object": ('{"data": [1, 2]}', r"one object \(keys: data\), not a list"),
    "csv": ("src,ans\na,b\n", "starts with 'src,ans"),
    "truncated array": (ARRAY[:-30], "truncated: it ends inside row 3.*download it again"),
    "truncated between rows": (ARRAY[: len(json.dumps(ROW)) + 2], "truncated.*inside row 2"),
    "broken array": (ARRAY.replace('"ans":', '"ans"', 1), "row 1 is not valid JSON"),
    "truncated jsonl": (jsonl(ROW, ROW)[:-20], "truncated: it ends inside row 2"),
    "broken jsonl": (jsonl(ROW) + "{oops}\n" + jsonl(ROW), "row 2 is not valid JSON"),
    "latin-1": (LATIN, "not UTF-8 at byte .*line 1; rows 2.*iconv"),
    "utf-16": (ARRAY.encode("utf-16"), "is UTF-16, not UTF-8. Convert it: `iconv -f utf-16 "),
    "utf-16 big-endian": (b"\xfe\xff" + ARRAY.encode("utf-16-be"), "is UTF-16, .*-f utf-16 "),
    "utf-16 unmarked": (ARRAY.encode("utf-16-le"), "is UTF-16LE, .*iconv -f utf-16le "),
    "utf-16be unmarked": (jsonl(ROW).encode("utf-16-be"), "is UTF-16BE, .*-f utf-16be "),
    "utf-32": (ARRAY.encode("utf-32"), "is UTF-32, .*iconv -f utf-32 "),
    "deep": ("[" * 200_000, "nested too deeply|truncated"),
}


def test_the_remedy_for_another_encoding_gives_the_rows(tmp_path: Path) -> None:
    """As it is printed, with a name for the new file."""
    path = write(tmp_path / "data.json", ARRAY.encode("utf-16"))
    with pytest.raises(DataFileError) as caught:
        open_rows(path)
    command = re.findall("`(.*)`", caught.value.remedy)[0].replace("NEW", str(tmp_path / "new"))
    subprocess.run(command, shell=True, check=True)
    assert len(open_rows(tmp_path / "new").rows) == 3


@pytest.mark.parametrize("case", BAD_FILES)
def test_unusable_file_gives_one_message_with_the_remedy(tmp_path: Path, case: str) -> None:
    content, expected = BAD_FILES[case]
    path = write(tmp_path / "data.json", content)
    with pytest.raises(DataFileError, match=expected) as caught:
        open_rows(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and caught.value.remedy


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="No such file"):
        open_rows(tmp_path / "none.json")
    with pytest.raises(DataFileError, match="is a directory"):
        open_rows(tmp_path)


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, len(ARRAY) - 1), junk=st.binary(max_size=4))
def test_damaged_bytes_are_rows_or_one_data_file_error(cut: int, junk: bytes) -> None:
    damaged = ARRAY.encode()[:cut] + junk
    try:
        rows = parse_rows(damaged, "data.json")
    except DataFileError as error:
        assert error.file == "data.json" and error.reason and error.remedy
    else:
        assert rows


def test_blank_targets_are_skipped_and_refused_with_strict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [ROW, {**ROW, "ans": "  "}, {**ROW, "ans": ""}]
    path = write(tmp_path / "a.json", rows)
    with caplog.at_level(logging.WARNING, logger="rledit.datasets"):
        report = read_edits(path)
    assert len(report.edits) == 1 and report.n_rows == 3
    assert [(issue.row, issue.trap) for issue in report.skipped] == [
        (2, "blank_target"),
        (3, "blank_target"),
    ]
    assert "skipped 2 blank targets (rows 2, 3)" in caplog.text
    with pytest.raises(RowErrors) as caught:
        read_edits(path, strict=True)
    assert [error.row for error in caught.value.errors] == [2, 3]
    assert "row 2: blank target" in str(caught.value)


def test_spaces_that_would_be_doubled_are_taken_off_and_noted(tmp_path: Path) -> None:
    row = {**ROW, "src": "Who? ", "ans": " Ann ", "rephrase": "Whom? "}
    report = read_edits(write(tmp_path / "a.json", [row]))
    (edit,) = report.edits
    assert (edit.prompt, edit.target, edit.rephrases) == ("Who?", "Ann", ("Whom?",))
    assert {note.trap for note in report.notes} == {
        "target_leading_space",
        "target_trailing_space",
        "prompt_trailing_space",
    }


def test_all_bad_rows_are_reported_together_with_their_own_schema(tmp_path: Path) -> None:
    bad = {key: value for key, value in ROW.items() if key not in ("rephrase", "loc")}
    rows: list[Any] = [ROW, *[bad] * 12, {**ROW, "src": 5}, [1]]
    with pytest.raises(RowErrors) as caught:
        read_edits(write(tmp_path / "a.json", rows))
    errors, message = caught.value.errors, str(caught.value)
    assert [error.row for error in errors] == list(range(2, 16))
    assert errors[0].missing == ("rephrase", "loc")
    assert "a.json, row 2: lacks `rephrase`, `loc`" in message
    assert message.startswith("14 rows of ") and "and 4 more rows" in message
    assert "accepted schemas" not in message  # that of the file is known
    assert "`src` is a number, not text: 5" in errors[12].reason
    assert "the row is a list, not an object: [1]" in errors[13].reason


def test_a_bad_first_row_is_told_from_the_format_of_the_rest(tmp_path: Path) -> None:
    bad = {key: value for key, value in ROW.items() if key != "loc"}
    with pytest.raises(RowErrors) as caught:
        read_edits(write(tmp_path / "a.json", [bad, ROW]))
    assert [(error.row, error.missing) for error in caught.value.errors] == [(1, ("loc",))]


def test_a_second_reading_is_taken_by_name_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [dict(FORMATS["zsre_mend"].example)])
    assert read_edits(path).edits[0].target == "Esbjerg"
    assert read_edits(path, format="zsre_rome").edits[0].target == "Oban"
    with pytest.raises(RowErrors, match="lacks `ans`"):
        read_edits(path, format="zsre_malmen")


def test_rows_opened_elsewhere_need_no_file() -> None:
    report = read_edits("s3://bucket/a.parquet", rows=iter([ROW, ROW]), data_hash="abc")
    assert report.data_hash == "abc" and report.edits[1].source == "a.parquet:2"
    hashed = [read_edits("x", rows=[{**ROW, "ans": a}]).data_hash for a in ("1", "1", "2")]
    assert hashed[0] == hashed[1] != hashed[2]
    with pytest.raises(DataFileError, match="holds no rows"):
        read_edits("x", rows=[])
