"""Counting duplicates, contradictions, traps and leakage."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rledit.datasets import FORMATS, NOTES, TRAPS, audit, audit_report, overlap, read_edits
from rledit.records import Edit, Locality


def edit(prompt: str, target: str, **other: object) -> Edit:
    base = Edit(edit_id=f"{prompt}-{target}", prompt=prompt, target=target, source="f.json:1")
    return replace(base, **other)  # type: ignore[arg-type]


def test_duplicates_and_contradictions() -> None:
    counts = audit([edit("p", "a"), edit("p", "a"), edit("p ", " b"), edit("q", "a")])
    assert (counts.n_edits, counts.n_prompts, counts.contradicting_prompts) == (4, 2, 1)
    assert counts.count("duplicate_edit") == 1
    assert counts.count("contradicting_edit") == 3


def test_one_fact_in_other_words_with_other_targets() -> None:
    fact = {"subject": "Maribel", "old_target": "Oban"}
    edits = [
        edit("Where is Maribel?", "a", rephrases=("Maribel is where?",), **fact),
        edit("Maribel is where?", "b", **fact),
        edit("Maribel is where?", "b", subject="Maribel", old_target="Tiree"),
        edit("Where is Colonsay?", "c", subject="Colonsay", old_target="Oban"),
    ]
    counts = audit(edits)
    # The first two by subject and old answer, the third as the rephrase of the first.
    assert counts.count("conflicting_fact") == 3
    assert counts.count("rephrase_contradicted") == 1
    assert counts.count("contradicting_edit") == 0
    same = [replace(edits[0], target="b", rephrases=()), edits[1]]
    assert audit(same).count("conflicting_fact") == 0
    apart = [replace(edit, rephrases=()) for edit in edits]
    assert audit(apart).count("conflicting_fact") == 2


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ("where is  MARIBEL ?", 2),
        ("Where is Maribel", 2),
        ("Where is Maribel moored?", 0),
    ],
)
def test_a_prompt_that_differs_in_its_form_alone_is_the_same_fact(other: str, found: int) -> None:
    """Without subject and old answer, as in MALMEN's files and UltraEditBench."""
    edits = [edit("Where is Maribel?", "Oban"), edit(other, "Esbjerg"), edit("Who sails?", "Ann")]
    counts = audit(edits)
    assert counts.count("conflicting_fact") == found
    assert counts.count("contradicting_edit") == 0
    agreeing = [edits[0], edit(other, "oban ")]
    assert audit(agreeing).count("conflicting_fact") == 0


def test_edits_that_change_nothing_and_subjects_out_of_place() -> None:
    counts = audit(
        [
            edit("p", "a", old_target=" a"),
            edit("q", "a", old_target="b", subject="x"),
            edit("x r", "a", subject="x"),
        ]
    )
    assert counts.count("target_equals_old") == 1
    assert counts.count("subject_not_in_prompt") == 1
    assert counts.count("no_subject") == 1


def test_probes() -> None:
    nq = Locality(prompt="nq question: who", answer="x")
    asked = Locality(prompt="nq question: who?", answer="x")
    edited = Locality(prompt="q", answer="x")
    counts = audit(
        [
            edit("p", "a", rephrases=("p",), locality=(nq,)),
            edit("q", "a", rephrases=("z",), locality=(asked, edited)),
            edit("r", "a"),
        ]
    )
    assert counts.count("rephrase_equals_prompt") == 1
    assert counts.count("locality_nq_question") == 2
    assert counts.count("locality_no_question_mark") == 1
    assert counts.count("locality_is_edited") == 1
    assert counts.count("no_rephrase") == counts.count("no_locality") == 1


def test_traps_of_the_raw_rows_reach_the_audit() -> None:
    knowedit = dict(FORMATS["knowedit"].example)
    empty = {"Relation_Specificity": [{"prompt": "r", "ground_truth": [[]]}]}
    rows = [
        {**knowedit, "target_new": ""},
        {**knowedit, "target_new": " x", "ground_truth": None, "locality": empty},
        {**knowedit, "ground_truth": "Oban"},
    ]
    counts = audit_report(read_edits("f.json", rows=rows))
    expected = {
        "blank_target": 1,
        "target_leading_space": 1,
        "ground_truth_list": 1,
        "ground_truth_absent": 1,
        "locality_answer_absent": 1,
    }
    assert {name: counts.count(name) for name in expected} == expected
    (blank,) = [trap for trap in counts.traps if trap.name == "blank_target"]
    assert blank.examples == ("f.json:1",) and "(rows 1)" in str(blank)


@pytest.mark.parametrize(
    ("rephrase", "found"),
    [
        ("Maribel is known for", 1),
        ("People around Maribel speak", 1),
        ("It rained all week. Maribel sails from", 0),
        ("Geography\nMaribel sails from", 0),
        ("She is known for", 0),
    ],
)
def test_generation_prompts_of_flat_counterfact(rephrase: str, found: int) -> None:
    row = {**FORMATS["counterfact_flat"].example, "rephrase_prompt": rephrase}
    counts = audit_report(read_edits("f.json", rows=[row]))
    assert counts.count("rephrase_generation_prompt") == found


def test_clean_edits_have_no_traps_and_unknown_names_are_refused() -> None:
    clean = edit(
        "x p",
        "a",
        subject="x",
        old_target="b",
        rephrases=("x?",),
        locality=(Locality(prompt="y?", answer="c"),),
    )
    counts = audit([clean])
    assert counts.traps == counts.notes == ()
    assert counts.count("blank_target") == 0
    with pytest.raises(KeyError, match="blank_target"):
        counts.count("blank_targets")
    assert not set(TRAPS) & set(NOTES)


def test_overlap_does_not_depend_on_which_set_comes_first() -> None:
    train = [edit("p", "a", subject="s", rephrases=("r", "u")), edit("q", "a")]
    evaluation = [
        edit("p", "b", subject="s", rephrases=("u",)),
        edit("q", "a"),
        edit("r", "a", subject="t"),
    ]
    found, turned = overlap(train, evaluation), overlap(evaluation, train)
    assert (found.prompts, found.facts, found.subjects, found.rephrases) == (2, 1, 1, 1)
    assert (found.second_in_first, found.first_in_second) == (1, 0)
    assert turned == replace(found, second_in_first=0, first_in_second=1)
    assert found.leaks and turned.leaks
    alone = [edit("x", "a", subject="s")]
    assert not overlap(train, alone).leaks
