"""Values of rows: NaN and null are missing, everything else is what it is, errors speak plainly."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.inputs.edit_files import read_data
from rledit.datasets import FORMATS, DataFileError, RowErrors, check_paths, read_edits

NAN = float("nan")
KNOWEDIT = dict(FORMATS["knowedit"].example)
MALMEN = dict(FORMATS["zsre_malmen"].example)
MEND = dict(FORMATS["zsre_mend"].example)


class NAType:
    """Looks like what pandas puts where something is missing."""


MISSING = [None, NAN, np.float64("nan"), np.float32("nan"), Decimal("NaN"), NAType()]


@pytest.mark.parametrize("value", MISSING, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_missing_is_absent_where_it_may_be(name: str, value: Any) -> None:
    """And refused, as missing, where it may not."""
    row = dict(FORMATS[name].example)
    for key in row:
        try:
            report = read_edits("a.json", name, rows=[{**row, key: value}])
        except RowErrors as error:
            assert str(error).startswith(f"a.json, row 1: `{key}` is missing")
            assert "accepted schemas" not in str(error)
            assert key not in ("rephrase", "rephrase_prompt", "subject", "loc", "loc_ans", "mhop")
        else:
            expected = read_edits("a.json", name, rows=[{**row, key: None}])
            assert report.edits == expected.edits and report.notes == expected.notes


def test_the_literal_nan_of_json_is_missing(tmp_path: Path) -> None:
    rows = [{**KNOWEDIT, "subject": NAN}, {**KNOWEDIT, "prompt": "B", "rephrase_prompt": NAN}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert "NaN" in path.read_text()
    first, second = read_edits(path).edits
    assert first.subject is None and first.rephrases and second.subject and not second.rephrases
    lines, code = check_paths([path])
    text = "\n".join(lines)
    assert code == 0 and "no_subject 1: " in text and "no_rephrase 1: " in text
    path.write_text(json.dumps([KNOWEDIT, {**KNOWEDIT, "prompt": NAN, "x": 1}]))
    lines, code = check_paths([path])
    assert code == 1 and lines[1:] == [
        "  ERROR     1 rows cannot be mapped",
        f"    {path}, row 2: `prompt` is missing (NaN), and text is needed",
    ]


def test_missing_items_of_lists_and_objects_are_left_out() -> None:
    original = dict(FORMATS["counterfact"].example)
    prompts = [*original["neighborhood_prompts"], None, NAN]
    (edit,) = read_edits("a", rows=[{**original, "neighborhood_prompts": prompts}]).edits
    assert len(edit.locality) == 2
    sections = {"A": [None, {"prompt": NAN, "ground_truth": NAN}, NAN], "B": NAN, "C": None}
    report = read_edits("a", rows=[{**KNOWEDIT, "locality": sections}])
    assert not report.edits[0].locality and not {n.trap for n in report.notes} - {
        "ground_truth_list"
    }


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (1987, "is a number, not text: 1987"),
        (np.int64(1987), "is a number, not text: 1987"),
        (True, "is true/false, not text: True"),
        (["x"], "is a list, not text: ['x']"),
        ({"str": "x"}, "is an object, not text: {'str': 'x'}"),
        (b"Esbjerg", "is binary data, not text: b'Esbjerg'"),
        ("\ud800", "holds half of a surrogate pair"),
        (["x" * 100], "is a list, not text: ['xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."),
    ],
)
def test_a_value_of_another_kind_is_shown_with_what_was_expected(value: Any, found: str) -> None:
    with pytest.raises(RowErrors) as caught:
        read_edits("a.json", rows=[MALMEN, {**MALMEN, "ans": value}])
    assert str(caught.value).startswith(f"a.json, row 2: `ans` {found}")
    assert "\n" not in str(caught.value)


def test_arrays_and_scalars_of_numpy_are_lists_and_what_they_hold() -> None:
    rows = [
        {**MEND, "answers": np.array(["Oban", "Tiree"], dtype=object), "alt": np.str_("Bergen")}
    ]
    (edit,) = read_edits("a.json", rows=rows).edits
    assert (edit.old_target, edit.target) == ("Oban", "Bergen") and type(edit.target) is str
    items = np.array([{"prompt": "Built in", "ground_truth": np.array([["1987"]])}], dtype=object)
    (edit,) = read_edits("a", rows=[{**KNOWEDIT, "locality": {"Any": items}}]).edits
    assert [(x.prompt, x.answer) for x in edit.locality] == [("Built in", "1987")]


def test_rows_of_a_data_frame_are_read_as_they_were_written() -> None:
    pandas = pytest.importorskip("pandas")
    rows = [MALMEN, {**MALMEN, "src": "B?"}, {**MALMEN, "src": "C?"}]
    del rows[1]["subject"]
    rows[2]["rephrase"] = None
    frame = pandas.DataFrame(rows)
    for given in (frame, frame.convert_dtypes(), frame.astype(object)):
        found = read_edits("a", rows=given.to_dict("records")).edits
        assert [(e.subject is None, e.rephrases == ()) for e in found] == [
            (False, False),
            (True, False),
            (False, True),
        ]


def table(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_parquet_map_is_an_object_and_a_struct_too(tmp_path: Path) -> None:
    item = pa.struct([("prompt", pa.string()), ("ground_truth", pa.list_(pa.string()))])
    rows = [{"Relation_Specificity": [{"prompt": "Built in", "ground_truth": ["1987"]}]}, None]
    keys = {"prompt": ["The ferry sails from", "B"], "target_new": ["Oban", "Tiree"]}
    for kind in (
        pa.map_(pa.string(), pa.list_(item)),
        pa.struct([("Relation_Specificity", pa.list_(item)), ("Forgetfulness", pa.list_(item))]),
    ):
        sections = [list(rows[0].items()) if pa.types.is_map(kind) else rows[0], None]
        column = pa.array(sections, type=kind)
        report = read_data(table(tmp_path / "a.parquet", **keys, locality=column))
        first, second = report.edits
        assert [(x.prompt, x.answer) for x in first.locality] == [("Built in", "1987")]
        assert not second.locality and not report.unread
    column = pa.array([[("A", []), ("A", [])], None], type=pa.map_(pa.string(), pa.list_(item)))
    with pytest.raises(DataFileError, match="a map has a key twice"):
        read_data(table(tmp_path / "b.parquet", **keys, locality=column))


def test_null_nan_numbers_and_binary_columns_of_parquet(tmp_path: Path) -> None:
    texts = {key: [value] * 2 for key, value in MALMEN.items()}
    for column in (pa.array([None, None], pa.string()), pa.array([NAN, NAN])):
        report = read_data(table(tmp_path / "a.parquet", **{**texts, "rephrase": column}))
        assert [edit.rephrases for edit in report.edits] == [(), ()]
    path = table(tmp_path / "b.parquet", **{**texts, "ans": pa.array([1.5, NAN])})
    with pytest.raises(RowErrors) as caught:
        read_data(path)
    assert str(caught.value) == (
        f"2 rows of {path} cannot be mapped:\n"
        f"{path}, row 1: `ans` is a number, not text: 1.5\n"
        f"{path}, row 2: `ans` is missing (NaN), and text is needed"
    )
    binary = pa.array([b"Oban", b"Tiree"])
    with pytest.raises(RowErrors, match=r"row 1: `ans` is binary data, not text: b'Oban'"):
        read_data(table(tmp_path / "c.parquet", **{**texts, "ans": binary}))


def test_errors_speak_of_the_schema_that_most_rows_have() -> None:
    """Whatever comes first; a row of another schema is told as one."""
    with pytest.raises(RowErrors) as caught:
        read_edits("a.json", rows=[MEND, *[MALMEN] * 3, {**MALMEN, "ans": 5}])
    first, last = caught.value.lines()
    assert first == (
        "a.json, row 1: lacks `ans`, which schema zsre_malmen (src, ans, rephrase, loc, loc_ans) "
        "needs; the row has the keys of zsre_mend"
    )
    assert last == "a.json, row 5: `ans` is a number, not text: 5"


def test_a_misspelt_key_is_pointed_at() -> None:
    row = {("rephrse" if key == "rephrase" else key): value for key, value in MALMEN.items()}
    with pytest.raises(RowErrors, match=r"lacks `rephrase`, .* needs \(it has `rephrse`\)"):
        read_edits("a.json", rows=[MALMEN, row])


def test_the_accepted_schemas_are_for_files_whose_schema_is_not_known() -> None:
    with pytest.raises(RowErrors) as caught:
        read_edits("a.json", rows=[{"question": "q", "label": "a"}, {"question": "r"}])
    assert str(caught.value).count("accepted schemas") == 1


def test_texts_that_software_writes_for_a_missing_value_are_a_trap(tmp_path: Path) -> None:
    rows = [{**MALMEN, "rephrase": "nan"}, {**MALMEN, "src": "B?", "ans": "None"}, MALMEN]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    lines, _ = check_paths([path])
    (line,) = [line for line in lines if "text_of_missing" in line]
    assert "text_of_missing 2: " in line and "(rows 1, 2)" in line
