"""Readers fed mutated rows and broken bytes: edits, or an error with file, row and reason."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
from rledit.records import Edit

FILE = "folder/mutated.json"
QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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


WRONG_KIND = [7, 2.5, True, [], {}, [7], {"x": 7}, b"x"]
COUNTED = {"blank_target", "locality_answer_absent", "portability_answer_absent"}
ABSENT = [None, float("nan"), np.float64("nan")]


def marked(value: Any, numbers: Iterator[int]) -> Any:
    """A row whose texts are all different, so that each tells where it comes from."""
    if isinstance(value, dict):
        return {key: marked(item, numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [marked(item, numbers) for item in value]
    return f"{value} v{next(numbers)}v" if isinstance(value, str) else value


def leaves(value: Any, path: str = "") -> dict[str, str]:
    """Text → the path of its key, as reports of keys that are not read write it."""
    found: dict[str, str] = {}
    if isinstance(value, dict):
        for key, item in value.items():
            found |= leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for item in value:
            nested = f"{path}[]" if isinstance(item, dict) else path
            found |= leaves(item, nested)
    elif isinstance(value, str):
        found[value] = path
    return found


def roles(edits: Sequence[Edit]) -> set[tuple[str, ...]]:
    """What the edits say: each text with what it is for, prompts together with their answers."""
    found: set[tuple[str, ...]] = set()
    for edit in edits:
        found |= {("edit", edit.prompt, edit.target), ("old", edit.prompt, edit.old_target or "")}
        found |= {("subject", edit.prompt, edit.subject or "")}
        found |= {("rephrase", edit.prompt, text) for text in edit.rephrases}
        found |= {("locality", edit.prompt, x.prompt, x.answer) for x in edit.locality}
        for item in edit.consequences:  # an alias may go, and never becomes the preferred answer
            found |= {("consequence", edit.prompt, item.prompt, item.answers[0])}
            found |= {("alias", edit.prompt, item.prompt, text) for text in item.answers[1:]}
        found |= {("generation", edit.prompt, text) for text in edit.generation_prompts}
    return {role for role in found if role[-1]}


def changed_once(row: Any, name: str, data: st.DataObject) -> str:
    """Drop, rename, empty or retype one key anywhere in a row; returns what was done."""
    *path, last = data.draw(st.sampled_from([p for p in places(row) if isinstance(p[-1], str)]))
    owner = row
    for step in path:
        owner = owner[step]
    action = data.draw(st.sampled_from(["drop", "other name", "unknown name", "absent", "kind"]))
    others = FORMATS[name].aliases.get(last, ()) if not path else ()
    if action == "drop":
        del owner[last]
    elif action == "other name" and others:
        owner[data.draw(st.sampled_from(others))] = owner.pop(last)
    elif action == "unknown name":
        owner[f"x_{last}"] = owner.pop(last)
    elif action == "absent":
        owner[last] = data.draw(st.sampled_from(ABSENT))
    elif action == "kind":
        # A copy: what is put in here may be changed by the next draw.
        owner[last] = copy.deepcopy(data.draw(st.sampled_from(WRONG_KIND)))
    return action


@pytest.mark.parametrize("name", FORMATS)
@QUICK
@given(data=st.data())
def test_a_mutated_row_is_read_rightly_or_named_or_refused(name: str, data: st.DataObject) -> None:
    """Nothing is invented, nothing changes its role, and nothing is lost without a word."""
    row = marked(dict(FORMATS[name].example), itertools.count())
    row["portability"] = {"Any": [{"prompt": "Asked p", "ground_truth": ["Answer p"]}]}
    before = roles(read_edits(FILE, name, rows=[copy.deepcopy(row)]).edits)
    for _ in range(data.draw(st.integers(1, 3))):
        changed_once(row, name, data)
    try:
        report = read_edits(FILE, name, rows=[copy.deepcopy(row)])
    except RowErrors as error:
        (one,) = error.errors
        assert one.short.startswith(f"{FILE}, row 1: ") and "`" in one.reason
        assert not one.accepted
        return
    after = roles(report.edits)
    assert after <= before
    there = leaves(row)
    said = {note.trap for note in (*report.notes, *report.skipped)}
    used = {text.removesuffix("?") for role in after for text in role[1:]}
    for text in {t.removesuffix("?") for lost in before - after for t in lost[2:]}:
        # What the row still says, and no edit does, is named or counted.
        if text in used or text not in there:
            continue
        key = there[text]
        named = any(key == u or key.startswith((f"{u}.", f"{u}[")) for u in report.unread)
        assert named or said & COUNTED, text


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
