"""Keys of public files: other names are read, two that contradict refused, the unread named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rledit.datasets import FORMATS, FileEditSource, RowErrors, check_paths, read_edits
from rledit.datasets.format import REPHRASE
from rledit.records import Edit

KNOWEDIT = dict(FORMATS["knowedit"].example)
MEND = dict(FORMATS["zsre_mend"].example)
FLAT = dict(FORMATS["counterfact_flat"].example)


def read(row: dict[str, Any], form: str = "auto") -> Edit:
    (edit, *_) = read_edits("a.json", form, rows=[row]).edits
    return edit


def renamed(row: Any, path: str, other: str) -> Any:
    """A row with a key, at a path as `Format.aliases` writes it, under another name."""
    head, _, rest = path.partition(".")
    if head.endswith("[]"):
        name = head.removesuffix("[]")
        inner = {
            k: [renamed(x, rest, other) for x in v] for k, v in row.items() if name in (k, "*")
        }
        return {**row, **inner}
    if rest:
        return {**row, head: renamed(row[head], rest, other)}
    return {(other if key == head else key): value for key, value in row.items()}


ALIASES = [
    (name, path, other)
    for name, form in FORMATS.items()
    for path, others in form.aliases.items()
    for other in others
    if path.partition("[")[0].partition(".")[0] not in ("portability", "locality")
]


@pytest.mark.parametrize(("name", "path", "other"), ALIASES)
def test_every_other_name_of_a_key_gives_the_same_edits(name: str, path: str, other: str) -> None:
    row = dict(FORMATS[name].example)
    changed = renamed(row, path, other)
    report = read_edits("a.json", name, rows=[changed])
    assert report.edits == read_edits("a.json", name, rows=[row]).edits
    assert set(report.adapted) == ({other} if changed != row else set())
    assert report.unread == read_edits("a.json", name, rows=[row]).unread


@pytest.mark.parametrize("other", [name for name in REPHRASE if name != "rephrase_prompt"])
def test_rephrases_under_another_name_are_found_without_naming_the_format(other: str) -> None:
    for row in (KNOWEDIT, FLAT):
        changed = renamed(row, "rephrase_prompt", other)
        assert read(changed).rephrases == (row["rephrase_prompt"],)
        assert read({**changed, other: [row["rephrase_prompt"], "B"]}).rephrases[1:] == ("B",)


def test_two_names_of_one_key_must_agree() -> None:
    text = KNOWEDIT["rephrase_prompt"]
    for same in (text, [text], f" {text}"):
        assert read({**KNOWEDIT, "rephrase": same}).rephrases == (text,)
    for empty in (None, float("nan"), "", []):
        assert read({**KNOWEDIT, "rephrase": empty}).rephrases == (text,)
        assert read({**KNOWEDIT, "rephrase": text, "rephrase_prompt": empty}).rephrases == (text,)
    with pytest.raises(RowErrors) as caught:
        read({**KNOWEDIT, "rephrase": "Another one"})
    assert str(caught.value) == (
        "a.json, row 1: has both `rephrase_prompt` and `rephrase`, which mean the same, with "
        "different content; keep one of them"
    )


def test_a_second_prompt_beside_the_first_is_no_contradiction() -> None:
    report = read_edits("a.json", rows=[{**KNOWEDIT, "question": "Where does she sail from?"}])
    assert report.edits[0].prompt == KNOWEDIT["prompt"] and report.unread == {"question": 1}


def test_messages_name_the_key_as_the_file_does() -> None:
    with pytest.raises(RowErrors, match="row 1: `rephrase` is a number, not text or a list"):
        read(renamed({**KNOWEDIT, "rephrase_prompt": 5}, "rephrase_prompt", "rephrase"))
    with pytest.raises(RowErrors, match=r"`rephrases\[1\]` is a number, not text: 5"):
        read(renamed({**KNOWEDIT, "rephrase_prompt": ["A", 5]}, "rephrase_prompt", "rephrases"))


def test_every_key_with_content_that_is_left_aside_is_named_once(tmp_path: Path) -> None:
    item = {"prompt": "Built in", "ground_truth": "1987", "aliases": ["'87"]}
    rows = [
        {**KNOWEDIT, "reworded": "The ferry leaves", "locality": {"Other": [item]}},
        {**KNOWEDIT, "prompt": "B", "reworded": "She leaves", "empty": "", "none": [None, ""]},
        {**KNOWEDIT, "prompt": "C", "reworded": None, "bell\a": 1},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    report = read_edits(path)
    assert report.unread == {"reworded": 2, "locality.Other[].aliases": 1, "bell\\x07": 1}
    lines, code = check_paths([path])
    assert code == 0 and lines[-1] == (
        "  unread    `reworded` 2, `locality.Other[].aliases` 1, `bell\\x07` 1: keys (with rows) "
        "that this format has no use for"
    )
    _, code = check_paths([path], strict=True)
    assert code == 1  # for a trap: keys that are left aside are none
    many = {**MEND, **{f"key{i}": i + 1 for i in range(30)}}
    path.write_text(json.dumps([many]))
    assert "`key18` 1 and 11 more keys: " in check_paths([path])[0][-1]


def test_keys_of_facts_and_items_that_are_left_aside_are_named_too(tmp_path: Path) -> None:
    fact = {"known_id": 0, "subject": "Oban", "attribute": "port", "prompt": "Oban is a"}
    item = {"sentence": "She sails.", "label": 1, "idx": 3}
    for name, row in (("known.json", fact), ("cola.json", item)):
        (tmp_path / name).write_text(json.dumps([{**row, "rephrase": "Another"}]))
        lines, code = check_paths([tmp_path / name])
        assert code == 0 and "  unread    `rephrase` 1: keys (with rows)" in lines[-1]


ASKED = {"prompt": "The country of its harbour is", "ground_truth": "Denmark"}
PORTABILITY: dict[str, tuple[Any, list[tuple[str, str, str]]]] = {
    "EasyEdit's ZsRE": (
        {
            "Recalled Relation": "(Esbjerg, country, Denmark)",
            "New Question": ASKED["prompt"],
            "New Answer": "Denmark",
        },
        [("one_hop", ASKED["prompt"], "Denmark")],
    ),
    "sections": (
        {"Reasoning": [ASKED, {"prompt": "B", "ground_truth": [["C", "D"]]}], "Other": None},
        [("Reasoning", ASKED["prompt"], "Denmark"), ("Reasoning", "B", "C")],
    ),
    "requests": ({"one_hop": ASKED}, [("one_hop", ASKED["prompt"], "Denmark")]),
    "parallel lists": (
        {"one_hop": {"prompt": [ASKED["prompt"], "B"], "ground_truth": ["Denmark", ["C"]]}},
        [("one_hop", ASKED["prompt"], "Denmark"), ("one_hop", "B", "C")],
    ),
    "a list": ([ASKED], [("one_hop", ASKED["prompt"], "Denmark")]),
    "nothing": ({}, []),
    "missing": (float("nan"), []),
}


@pytest.mark.parametrize("shape", PORTABILITY)
@pytest.mark.parametrize(
    "name",
    ["zsre_mend", "zsre_malmen", "counterfact", "counterfact_flat", "ultraeditbench", "qaedit"],
)
def test_portability_of_rows_is_read_in_the_shapes_of_public_files(name: str, shape: str) -> None:
    written, expected = PORTABILITY[shape]
    row = dict(FORMATS[name].example)
    report = read_edits("a.json", rows=[{**row, "portability": written}])
    assert report.format == name
    found = [(item.kind, item.prompt, *item.answers) for item in report.edits[0].consequences]
    assert found == expected
    assert replace(report.edits[0], consequences=()) == read(row)
    assert ("portability" in report.adapted) == bool(expected)
    left = {"portability.Recalled Relation"} if shape == "EasyEdit's ZsRE" else set()
    assert set(report.unread) - set(read_edits("a.json", rows=[row]).unread) == left


def test_portability_that_is_not_of_the_answer_that_is_written_is_named_as_unread() -> None:
    row = {**MEND, "portability": {"New Question": "Q", "New Answer": "A"}}
    report = read_edits("a.json", "zsre_rome", rows=[row])
    assert not report.edits[0].consequences and report.unread["portability"] == 1


def test_half_a_probe_is_counted_and_lists_that_do_not_match_are_refused() -> None:
    halves = {"A": [{"prompt": "x"}, {"ground_truth": "y"}, ASKED]}
    report = read_edits("a.json", rows=[{**MEND, "portability": halves, "loc_ans": float("nan")}])
    assert [note.trap for note in report.notes] == [
        "locality_answer_absent",
        "portability_answer_absent",
        "portability_answer_absent",
    ]
    assert len(report.edits[0].consequences) == 1
    uneven = {"one_hop": {"prompt": ["a", "b"], "ground_truth": ["c"]}}
    with pytest.raises(
        RowErrors, match="ground_truth` has 1 entries for the 2 of `portability.one"
    ):
        read({**MEND, "portability": uneven})


def test_what_is_read_under_another_name_is_part_of_the_identity() -> None:
    def hashed(**change: Any) -> str:
        row = {**MEND, **change}
        return FileEditSource(evaluation=read_edits("a", rows=[row], data_hash="same")).data_hash

    def moved(key: str, other: str) -> str:
        report = read_edits("a", rows=[renamed(MEND, key, other)], data_hash="same")
        return FileEditSource(evaluation=report).data_hash

    # Cells whose files have nothing of it keep their keys.
    assert hashed() == hashed(foo="unread") != hashed(portability=[ASKED])
    assert hashed() != moved("rephrase", "paraphrase") != moved("rephrase", "paraphrases")
