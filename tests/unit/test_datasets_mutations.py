"""Readers fed mutated rows and broken bytes: edits, or an error with file, row and reason."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rledit.datasets import (
    FORMATS,
    DatasetError,
    RowErrors,
    check_paths,
    read_edits,
    rows_given,
)
from rledit.datasets.errors import DataFileError

FILE = "folder/mutated.json"
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["", " ", "{}", "{} and {}", "\ud800", "nq question: ", " x ", "\u2028"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["prompt", "str", "subject", "x", ""]), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a row."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key in value:
            found += places(value[key], (*path, key))
    if isinstance(value, list):
        for i, item in enumerate(value):
            found += places(item, (*path, i))
    return found


def mutated(row: Any, data: st.DataObject) -> Any:
    """The row with one to three values replaced, removed or put under another key."""
    row = copy.deepcopy(dict(row))
    for _ in range(data.draw(st.integers(1, 3))):
        paths = places(row)
        if not paths:
            break
        *path, last = data.draw(st.sampled_from(paths))
        owner = row
        for step in path:
            owner = owner[step]
        action = data.draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
        if action == "replace":
            owner[last] = data.draw(VALUES)
        elif action == "remove":
            del owner[last]
        elif isinstance(owner, dict):
            owner[data.draw(st.text(max_size=4))] = owner.pop(last)
    return row


@pytest.mark.parametrize("name", FORMATS)
@QUICK
@given(data=st.data())
def test_mutated_rows_are_mapped_or_refused_with_file_row_and_reason(
    name: str, data: st.DataObject
) -> None:
    good = dict(FORMATS[name].example)
    rows = [good, mutated(good, data), data.draw(VALUES), mutated(good, data)]
    rows = [row for row in rows if data.draw(st.booleans()) or row is good]
    for form in (name, "auto"):
        try:
            report = read_edits(FILE, form, data.draw(st.booleans()), rows=rows)
        except RowErrors as error:
            assert error.errors
            for one in error.errors:
                assert one.file == FILE and 1 <= one.row <= len(rows) and one.reason.strip()
                assert one.short.startswith(f"{FILE}, row {one.row}: ")
                assert all(isinstance(key, str) for key in one.missing)
            str(error).encode()
        else:
            assert report.n_rows == len(rows)
            for edit in report.edits:
                texts = [edit.prompt, edit.target, *edit.rephrases]
                texts += [t for probe in edit.locality for t in (probe.prompt, probe.answer)]
                texts += [t for item in edit.consequences for t in (item.prompt, *item.answers)]
                assert edit.prompt.strip() and edit.target == edit.target.strip() != ""
                assert all(isinstance(text, str) and text.encode() is not None for text in texts)
                assert edit.source.startswith("mutated.json:")


@pytest.mark.parametrize("name", ["zsre_mend", "fever", "counterfact", "mquake", "knowedit"])
@QUICK
@given(data=st.data())
def test_broken_bytes_are_refused_with_the_file(
    name: str, data: st.DataObject, tmp_path: Path
) -> None:
    rows = [dict(FORMATS[name].example)] * 3
    lines = data.draw(st.booleans())
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1)
    content = bytearray(text.encode())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path / ("a.jsonl" if lines else "a.json")
    path.write_bytes(content)
    try:
        read_edits(path)
    except DataFileError as error:
        assert error.file == str(path) and error.reason and error.remedy
    except DatasetError as error:
        assert str(path) in str(error)
    lines_shown, code = check_paths([path])
    assert lines_shown[0] == str(path) and code in (0, 1)
    assert code == 0 or any("ERROR" in line for line in lines_shown)


ITEMS: dict[str, dict[str, Any]] = {
    "known": {
        "known_id": 1,
        "subject": "Maribel",
        "attribute": "Oban",
        "template": "{} sails from",
        "prompt": "Maribel sails from",
    },
    "cola": {"sentence": "She sails.", "label": 1, "idx": 3},
    "rte": {"sentence1": "She sails.", "sentence2": "She moves.", "label": 0, "idx": 4},
    "nli": {"sentence1": "She sails.", "sentence2": "She moves.", "label": "entailment"},
    "mmlu": {"question": "How many?", "subject": "maths", "choices": ["1", "2"], "answer": 1},
    "dialogue": {"article": "m: hello.", "options": ["f: yes", "f: no"], "answers": "B"},
}


@pytest.mark.parametrize("name", ITEMS)
@QUICK
@given(data=st.data())
def test_mutated_items_are_checked_without_a_crash(name: str, data: st.DataObject) -> None:
    rows = [ITEMS[name], mutated(ITEMS[name], data), mutated(ITEMS[name], data)]
    order = data.draw(st.permutations(rows))
    lines, code = check_paths([FILE], opener=lambda path: rows_given(path, order, "beef"))
    errors = [line for line in lines if "ERROR" in line]
    assert lines[0] == FILE and code == bool(errors)
    "\n".join(lines).encode()
    if errors:
        assert any(f"{FILE}, row " in line for line in lines)
