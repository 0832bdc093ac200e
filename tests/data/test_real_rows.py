"""Real rows of public datasets, where RLEDIT_DATA names the directory that holds them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from rledit.datasets import (
    FileEditSource,
    RowErrors,
    audit,
    audit_report,
    check_paths,
    open_rows,
    overlap,
    read_edits,
)
from rledit.datasets.known import map_known

DATA = Path(os.environ.get("RLEDIT_DATA", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("RLEDIT_DATA"), reason="RLEDIT_DATA does not name a directory of real rows"
)

# file: format, rows, edits
EDIT_FILES: dict[str, tuple[str, int, int]] = {
    "zsre/zsre_mend_train_first700.json": ("zsre_mend", 700, 699),
    "zsre/zsre_mend_eval_first24.json": ("zsre_mend", 24, 24),
    "counterfact/counterfact-train.json": ("counterfact_flat", 10_000, 10_000),
    "counterfact/counterfact-edit_first8000.json": ("counterfact_flat", 8_000, 8_000),
    "counterfact/counterfact_original_schema_case0.json": ("counterfact", 1, 1),
    "fever/fever_eval_first14.json": ("fever", 14, 14),
    "mquake/MQuAKE-CF-3k-v2_first3.json": ("mquake", 3, 4),
    "knowedit/ZsRE-test-all_first1000.json": ("knowedit", 1_000, 1_000),
    "knowedit/wiki_counterfact_train_cf_first1100.json": ("knowedit", 1_100, 1_100),
    "knowedit/wiki_recent_train_first450.json": ("knowedit", 450, 450),
    "knowedit/wikibio-train-all.json": ("knowedit_wikibio", 464, 464),
    "qaedit/QAEdit_inter_1k_first700.json": ("qaedit", 700, 700),
}

# Traps that were counted independently of the reader, on the raw JSON.
TRAP_COUNTS: dict[str, dict[str, int]] = {
    "zsre/zsre_mend_train_first700.json": {
        "blank_target": 1,
        "target_leading_space": 8,
        "locality_nq_question": 699,
        "locality_no_question_mark": 699,
    },
    "zsre/zsre_mend_eval_first24.json": {
        "target_leading_space": 2,
        "locality_nq_question": 24,
        "conflicting_fact": 15,
    },
    "counterfact/counterfact-train.json": {
        "contradicting_edit": 133,
        "duplicate_edit": 3,
        "rephrase_equals_prompt": 13,
    },
    "counterfact/counterfact-edit_first8000.json": {
        "contradicting_edit": 77,
        "duplicate_edit": 2,
        "rephrase_equals_prompt": 13,
    },
    "fever/fever_eval_first14.json": {"target_equals_old": 2, "no_subject": 14},
    "knowedit/ZsRE-test-all_first1000.json": {
        "target_leading_space": 9,
        "ground_truth_list": 1_000,
        "contradicting_edit": 14,
    },
    "knowedit/wiki_counterfact_train_cf_first1100.json": {
        "ground_truth_absent": 1,
        "duplicate_edit": 11,
        "no_rephrase": 1_100,
    },
    "knowedit/wiki_recent_train_first450.json": {
        "ground_truth_absent": 450,
        "locality_answer_absent": 6,
        "no_locality": 117,
    },
    "knowedit/wikibio-train-all.json": {"prompt_trailing_space": 95},
    "qaedit/QAEdit_inter_1k_first700.json": {
        "target_leading_space": 6,
        "target_trailing_space": 5,
    },
}

DOWNSTREAM_FILES = {
    "cola": 450,
    "dialogue": 620,
    "mmlu": 1_061,
    "mrpc": 180,
    "nli": 1_742,
    "rte": 183,
    "sentiment_analysis": 610,
    "sst2": 599,
}


@pytest.mark.parametrize("name", EDIT_FILES)
def test_every_row_is_mapped(name: str) -> None:
    form, n_rows, n_edits = EDIT_FILES[name]
    report = read_edits(DATA / name)
    assert (report.format, report.n_rows, len(report.edits)) == (form, n_rows, n_edits)
    assert report.data_hash == hashlib.sha256((DATA / name).read_bytes()).hexdigest()
    assert not report.adapted  # in their own schemas: keys of older cells stay
    assert len({edit.edit_id for edit in report.edits}) == n_edits
    for edit in report.edits:
        assert edit.prompt == edit.prompt.rstrip() and edit.target == edit.target.strip() != ""
        assert edit.subject is None or edit.subject in edit.prompt
        assert "{}" not in edit.prompt


@pytest.mark.parametrize("name", TRAP_COUNTS)
def test_known_traps_are_found(name: str) -> None:
    counts = audit_report(read_edits(DATA / name))
    expected = TRAP_COUNTS[name]
    assert {trap: counts.count(trap) for trap in expected} == expected


def test_the_published_hashes_are_met() -> None:
    listed = (line.split() for line in (DATA / "SHA256SUMS").read_text().splitlines())
    hashes = {name.removeprefix("./"): digest for digest, name in listed}
    for name in EDIT_FILES:
        assert read_edits(DATA / name).data_hash == hashes[name]


def test_counterfact_contradicts_itself_over_its_two_files() -> None:
    one, two = (read_edits(DATA / name).edits for name in list(EDIT_FILES)[2:4])
    assert audit(one + two).contradicting_prompts == 146
    assert overlap(one, two).prompts == 93


def test_most_flat_counterfact_rephrases_are_generation_prompts() -> None:
    for name, least in (("train", 8_000), ("edit_first8000", 6_500)):
        report = read_edits(DATA / f"counterfact/counterfact-{name}.json")
        assert audit_report(report).count("rephrase_generation_prompt") > least


def test_the_flat_file_takes_its_rephrase_from_the_generation_prompts() -> None:
    original = read_edits(DATA / "counterfact/counterfact_original_schema_case0.json").edits[0]
    flat = read_edits(DATA / "counterfact/counterfact-edit_first8000.json").edits[0]
    assert (original.prompt, original.target) == (flat.prompt, flat.target)
    assert len(original.rephrases) == 2 and len(original.locality) == 10
    assert flat.rephrases[0] not in original.rephrases
    assert flat.locality[0] in original.locality


def test_blank_zsre_target_is_row_535_and_refused_with_strict() -> None:
    path = DATA / "zsre/zsre_mend_train_first700.json"
    assert [issue.row for issue in read_edits(path).skipped] == [535]
    with pytest.raises(RowErrors, match="row 535: blank target"):
        read_edits(path, strict=True)


def test_zsre_readings_of_the_same_file() -> None:
    path = DATA / "zsre/zsre_mend_eval_first24.json"
    mend, rome = read_edits(path).edits[0], read_edits(path, format="zsre_rome").edits[0]
    assert mend.target != rome.target == mend.old_target
    assert rome.locality[0].prompt == mend.locality[0].prompt + "?"


def test_known_facts() -> None:
    facts = map_known(open_rows(DATA / "known/known_1000_first900.json"))
    assert len(facts) == 900 and all(fact.subject in fact.prompt for fact in facts)


def test_data_check_over_everything() -> None:
    lines, code = check_paths([DATA])
    text = "\n".join(lines)
    assert code == 0 and "ERROR" not in text
    for task, count in DOWNSTREAM_FILES.items():
        assert f"downstream items of task {task}\n  rows      {count:,} items" in text
    assert "known: facts for causal tracing" in text and "900 facts" in text
    assert "146 prompts carry more than one target" in text
    assert "share 408 items" in text
    lines, code = check_paths([DATA / "zsre"], strict=True)
    assert code == 1


def test_a_real_file_as_a_source_of_streams() -> None:
    train, evaluation = (DATA / name for name in list(EDIT_FILES)[2:4])
    with pytest.raises(ValueError, match="train and evaluation share 93 prompts"):
        FileEditSource(train=train, evaluation=evaluation)
    source = FileEditSource(train=train, evaluation=evaluation, on_overlap="drop")
    assert source.sizes()["evaluation"] == 8_000 and source.dropped["train"] >= 93
    stream = source.draw("evaluation", 8_000, seed=1)
    assert source.draw("evaluation", 2_000, seed=1) == stream[:2_000]
