"""``rledit data check``: lines and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rledit.datasets import FORMATS, check_paths, open_rows, rows_given

CLEAN = {
    "prompt": "The ferry Maribel sails from",
    "target_new": "Esbjerg",
    "subject": "Maribel",
    "ground_truth": "Oban",
    "rephrase_prompt": "It rained. Maribel leaves",
    "locality_prompt": "The ferry Colonsay sails from",
    "locality_ground_truth": "Oban",
}
MALMEN = dict(FORMATS["zsre_malmen"].example)


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def sentences(path: Path, texts: list[str], label: Any) -> Path:
    rows = [{"sentence": t, "label": label, "idx": i} for i, t in enumerate(texts)]
    if isinstance(label, str):
        rows = [{"sentence": t, "label": label} for t in texts]
    return write(path, "\n".join(map(json.dumps, rows)))


def test_clean_file_passes_even_strict(tmp_path: Path) -> None:
    lines, code = check_paths([write(tmp_path / "a.json", [CLEAN])], strict=True)
    text = "\n".join(lines)
    assert code == 0
    assert "counterfact_flat" in text and "1: 1 edits of 1 prompts" in text
    assert "sha256" in text and "trap" not in text


def test_traps_are_reported_and_fail_only_strict(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [CLEAN, {**CLEAN, "target_new": ""}])
    lines, code = check_paths([path])
    assert code == 0 and any("blank_target 1" in line and "rows 2" in line for line in lines)
    lines, code = check_paths([path], strict=True)
    assert code == 1 and any("strict: 1 kinds of traps" in line for line in lines)


def test_unmappable_rows_exit_1_with_row_level_reasons(tmp_path: Path) -> None:
    bad = {key: value for key, value in CLEAN.items() if key != "target_new"}
    lines, code = check_paths([write(tmp_path / "a.json", [CLEAN, bad])])
    text = "\n".join(lines)
    assert code == 1 and "1 rows cannot be mapped" in text
    assert "a.json, row 2: lacks `target_new`, which schema counterfact_flat (prompt" in text
    assert "accepted schemas" not in text  # the file's own was recognised


def test_foreign_schema_exits_1_and_names_the_nearest(tmp_path: Path) -> None:
    lines, code = check_paths([write(tmp_path / "a.json", [{"question": "q", "answers": ["a"]}])])
    assert code == 1 and any("row 1: fits no schema; the nearest is" in line for line in lines)


def test_one_broken_file_does_not_hide_the_others(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "lfs.json", "version https://git-lfs.github.com/spec/v1\noid x"),
        tmp_path / "missing.json",
        write(tmp_path / "ok.json", [CLEAN]),
    ]
    lines, code = check_paths(paths)
    text = "\n".join(lines)
    assert code == 1 and "git-lfs pointer" in text and "No such file" in text
    assert "1 edits of 1 prompts" in text


def test_directories_are_searched(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "a.json", [CLEAN])
    write(tmp_path / "README.md", "not data")
    lines, code = check_paths([tmp_path])
    assert code == 0 and lines[0].endswith("a.json")
    lines, code = check_paths([tmp_path / "deep" / "a.json", tmp_path / "deep"])
    assert any(line.startswith("overlap") for line in lines)


def test_contradictions_over_files_and_leakage(tmp_path: Path) -> None:
    one = write(tmp_path / "a.json", [CLEAN])
    two = write(tmp_path / "b.json", [{**CLEAN, "target_new": "Tiree"}])
    lines, _ = check_paths([one, two])
    text = "\n".join(lines)
    assert "share 1 prompts (0 with the same target)" in text
    assert "2 files of counterfact_flat, 2 edits: 1 prompts carry more than one target" in text


REPHRASED = {
    "as a prompt": {"src": "From which harbour does the ferry Maribel leave?"},
    "as a rephrase": {"src": "Where is the ferry?", "rephrase": MALMEN["rephrase"]},
}


@pytest.mark.parametrize("asked", REPHRASED)
@pytest.mark.parametrize("names", [("train", "eval"), ("eval", "train")])
def test_leakage_by_rephrases_is_found_in_any_order_of_files(
    asked: str, names: tuple[str, str], tmp_path: Path
) -> None:
    """A rephrase of training is evaluated: as an edit, or as a rephrase of another one."""
    rows = {"train": MALMEN, "eval": {**MALMEN, "rephrase": "Well?", **REPHRASED[asked]}}
    train, evaluation = (tmp_path / f"{name}.json" for name in ("train", "eval"))
    paths = [write(tmp_path / f"{name}.json", [rows[name]]) for name in names]
    # A folder is searched in the order of names, whatever they stand for.
    for given in (paths, [tmp_path]):
        lines, code = check_paths(given, strict=True)
        (line,) = [line for line in lines if line.startswith("overlap")]
        assert code == 1
        if asked == "as a prompt":
            assert f"1 prompts of {evaluation} are rephrases in {train}" in line
            assert f"0 prompts of {train} are rephrases in {evaluation}" in line
        else:
            assert "share 0 prompts (0 with the same target), 1 rephrases" in line


def test_files_that_share_nothing_but_subjects_do_not_overlap(tmp_path: Path) -> None:
    one = write(tmp_path / "a.json", [CLEAN])
    other = {**CLEAN, "prompt": "Maribel was built in", "rephrase_prompt": "It rained. Her keel"}
    lines, code = check_paths([one, write(tmp_path / "b.json", [other])], strict=True)
    assert code == 0 and not any(line.startswith("overlap") for line in lines)


def test_ability_items_are_told_by_keys_and_file_name(tmp_path: Path) -> None:
    lines, code = check_paths(
        [
            sentences(tmp_path / "sst2.jsonl", ["a", "b"], 1),
            sentences(tmp_path / "sentiment_analysis.jsonl", ["b", "c"], "1"),
            sentences(tmp_path / "other.jsonl", ["z"], 0),
        ]
    )
    text = "\n".join(lines)
    assert code == 0
    assert "items of task sst2" in text and "items of task cola or sst2" in text
    assert "share 1 items: they are not two independent measurements" in text
    assert "constant_answer 100.0" in text


def test_broken_ability_item_exits_1(tmp_path: Path) -> None:
    good = {"question": "q", "subject": "s", "choices": [*"abcd"], "answer": 1}
    lines, code = check_paths([write(tmp_path / "mmlu.json", [good, {**good, "answer": 7}])])
    assert code == 1 and any("row 2: `answer` is 7, but there are 4 options" in x for x in lines)


def test_known_facts_are_named_as_what_they_are(tmp_path: Path) -> None:
    fact = {
        "known_id": 0,
        "subject": "Maribel",
        "attribute": "Oban",
        "template": "{} is in",
        "prompt": "Maribel is in the port of",
    }
    lines, code = check_paths([write(tmp_path / "known.json", [fact])])
    text = "\n".join(lines)
    assert code == 0 and "causal tracing" in text and "not edits" in text
    assert "template_differs 1" in text


def test_files_of_other_kinds_come_through_the_opener(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [CLEAN])

    def opener(name: str) -> Any:
        if name.endswith(".json"):
            return open_rows(name)
        return rows_given(name, [FORMATS["mquake"].example], "beef")

    lines, code = check_paths(["s3://bucket/x.parquet", path], opener=opener)
    text = "\n".join(lines)
    assert code == 0 and "2 edits of 2 prompts" in text and "beef" in text
    assert "counterfact_flat" in text
