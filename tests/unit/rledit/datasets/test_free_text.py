"""Free text: AKEW's three readings, UnKE's paragraphs, and HalluEditBench's questions."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rledit.datasets import (
    FORMATS,
    RowErrors,
    audit_report,
    check_paths,
    detect_format,
    read_edits,
)
from rledit.records import Edit, Premise

AKEW = dict(FORMATS["akew"].example)
UNKE = dict(FORMATS["unke"].example)
HALLU = dict(FORMATS["hallueditbench"].example)
TEXT = AKEW["requested_rewrite"]["fact_new_uns"]


def read(row: dict[str, Any], form: str = "auto") -> list[Edit]:
    return list(read_edits("a.json", form, rows=[row]).edits)


def rewrite(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(AKEW["requested_rewrite"]), **changes}


# ---- AKEW ---------------------------------------------------------------------------------------


def test_akews_text_is_the_target_and_its_fact_and_triples_follow() -> None:
    (edit,) = read(AKEW)
    assert edit.edit_id == "akew:1"
    assert (edit.prompt, edit.target) == (AKEW["requested_rewrite"]["question"], TEXT)
    assert (edit.old_target, edit.subject, edit.time) == (None, "Maribel", "2023-05-01")
    assert [(x.kind, x.prompt, x.answers) for x in edit.consequences] == [
        ("short_answer", "The ferry Maribel sails from", ("Esbjerg",)),
        ("sub_question", "Maribel was built in", ("1987",)),
        ("sub_question", "Maribel has sailed from", ("Esbjerg",)),
    ]


def test_akews_counterfact_and_mquake_are_told_from_their_originals() -> None:
    counterfact = {**FORMATS["counterfact"].example, "requested_rewrite": rewrite()}
    assert detect_format(counterfact).name == "akew"
    plain = dict(FORMATS["counterfact"].example)
    assert detect_format(plain).name == "counterfact"
    mquake = {**FORMATS["mquake"].example, "requested_rewrite": [rewrite()]}
    assert detect_format(mquake).name == "akew"
    assert detect_format(FORMATS["mquake"].example).name == "mquake"
    report = read_edits("a.json", "counterfact", rows=[counterfact])
    assert report.edits[0].target == "Esbjerg"  # asked for by name, they are read as such
    (edit,) = read({**counterfact, "requested_rewrite": rewrite(prompt_full="Maribel's port is")})
    assert edit.prompt == "Maribel's port is"
    assert edit.rephrases == tuple(plain["paraphrase_prompts"])
    assert {probe.answer for probe in edit.locality} == {"Oban"} and len(edit.locality) == 2
    assert [x.prompt for x in edit.consequences if x.kind == "short_answer"] == [
        "Which harbour does the ferry Maribel sail from?",
        "The ferry Maribel sails from",
    ]


def test_several_facts_of_a_row_are_as_many_edits_with_one_chain() -> None:
    second = rewrite(prompt="{} lies in", subject="Esbjerg", question="Where does Esbjerg lie?",
                     fact_new_uns="Esbjerg is a town in Norway. It is wet.",
                     target_new={"str": "Norway"}, answer_new_alias=["Kingdom of Norway"],
                     unsfact_triplets_GPT=None)  # fmt: skip
    chain = {**FORMATS["mquake"].example, "requested_rewrite": [rewrite(), second]}
    one, two = read(chain)
    assert (one.edit_id, two.edit_id) == ("akew:1.1", "akew:1.2")
    assert [x.kind for x in two.consequences] == ["short_answer", "multi_hop"]
    assert two.consequences[0].answers == ("Norway", "Kingdom of Norway")
    (first, *_) = two.consequences[1].premises
    assert isinstance(first, Premise) and first.answers == (TEXT,) and first.edited


def test_the_structured_and_the_extracted_fact_are_read_by_name() -> None:
    (fact,) = read(AKEW, "akew_structured")
    assert (fact.prompt, fact.target, fact.old_target) == (
        "The ferry Maribel sails from", "Esbjerg", "Oban",
    )  # fmt: skip
    assert fact.rephrases == ("Which harbour does the ferry Maribel sail from?",)
    built, port = read(AKEW, "akew_extracted")
    assert (built.prompt, built.target) == ("Maribel was built in", "1987")
    assert built.subject_span == (0, 7) and not built.consequences
    assert [(x.kind, x.answers) for x in port.consequences] == [("short_answer", ("Esbjerg",))] * 2


@pytest.mark.parametrize(
    ("changes", "form", "message"),
    [
        ({"fact_new_uns": " "}, "auto", "`requested_rewrite.fact_new_uns` is blank"),
        ({"prompt": "sails from"}, "auto", "`requested_rewrite.prompt` has no slot"),
        ({"unsfact_triplets_GPT": [{"subject": "M", "prompt": "{} is"}]}, "akew_extracted",
         "lacks the key `requested_rewrite.unsfact_triplets_GPT[0].target`"),
        ({"unsfact_triplets_GPT": []}, "akew_extracted",
         "`requested_rewrite.unsfact_triplets_GPT` is missing or empty: there is nothing to edit"),
    ],
)  # fmt: skip
def test_a_broken_row_of_akew_names_its_key(
    changes: dict[str, Any], form: str, message: str
) -> None:
    with pytest.raises(RowErrors) as caught:
        read({**AKEW, "requested_rewrite": rewrite(**changes)}, form)
    assert f"a.json, row 1: {message}" in str(caught.value)


def test_a_triple_without_a_target_is_left_out_and_counted() -> None:
    triples = [{"subject": "Maribel", "prompt": "{} was built in", "target": None}]
    row = {**AKEW, "requested_rewrite": rewrite(unsfact_triplets_GPT=triples)}
    report = read_edits("a.json", rows=[row])
    assert [x.kind for x in report.edits[0].consequences] == ["short_answer"]
    assert audit_report(report).count("portability_answer_absent") == 1
    neighbours = {"paraphrase_prompts": [], "neighborhood_prompts": ["Tiree sails from"]}
    with pytest.raises(RowErrors, match=r"`requested_rewrite.target_true` is missing or blank"):
        read({**neighbours, "requested_rewrite": rewrite(target_true={"str": ""})})


# ---- UnKE ---------------------------------------------------------------------------------------


def test_unkes_paragraph_is_the_target_and_its_questions_follow() -> None:
    (edit,) = read(UNKE)
    assert (edit.prompt, edit.target) == (UNKE["question"], UNKE["answer"])
    assert edit.rephrases == (UNKE["para_question"],)
    assert [(x.kind, x.prompt, x.answers) for x in edit.consequences] == [
        ("sub_question", "When was Maribel built?", ("In 1987.",)),
        ("sub_question", "Which harbour does Maribel sail from?", ("Esbjerg.",)),
    ]


def test_unkes_questions_have_as_many_answers() -> None:
    rows = [{**UNKE, "sub_answer": ["In 1987."]}, UNKE, {**UNKE, "answer": 5}]
    with pytest.raises(RowErrors) as caught:
        read_edits("a.json", rows=rows)
    assert caught.value.lines()[:2] == [
        "a.json, row 1: `sub_answer` has 1 entries for the 2 of `sub_question`",
        "a.json, row 3: `answer` is a number, not text: 5",
    ]
    report = read_edits("a.json", rows=[{**UNKE, "sub_answer": ["In 1987.", None]}])
    assert len(report.edits[0].consequences) == 1
    assert audit_report(report).count("portability_answer_absent") == 1


def test_long_targets_are_noted_and_are_no_trap(tmp_path: Path) -> None:
    path = tmp_path / "unke.json"
    path.write_text(json.dumps([UNKE]))
    lines, code = check_paths([path], strict=True)
    assert (
        code == 0 and "  scored by token_accuracy, exact_match; measurements: portability" in lines
    )
    (note,) = [line for line in lines if "note      long_target" in line]
    assert note == (
        "  note      long_target 1: the target goes on behind a full stop, a line break or 50 "
        "words, where a free answer ends: it cannot be met under `wild` (rows 1)"
    )


# ---- HalluEditBench -----------------------------------------------------------------------------


def test_every_kind_of_hallueditbenchs_questions_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "transport_ferry.csv"
    rows = [{**HALLU, "answer_2hop": ""}, {**HALLU, "question_3hop": "Who rules there?",
                                           "answer_3hop": "King, the"}]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[1]))
        writer.writeheader()
        writer.writerows(rows)
    report = read_edits(path)
    assert report.format == "hallueditbench"
    one, two = report.edits
    assert (two.prompt, two.target, two.old_target) == (HALLU["question"], "Esbjerg", "Oban")
    assert (two.subject, two.relation) == ("Maribel", "home port")
    assert two.rephrases == (HALLU["paraphrased_question"],)
    assert [(x.kind, x.answers[0]) for x in two.consequences] == [
        ("yes", "Yes"), ("no", "No"), ("multiple_choice", "B"), ("reversed_relation", "Maribel"),
        ("2_hop", "Denmark"), ("3_hop", "King, the"),
    ]  # fmt: skip
    assert two.consequences[2].prompt == f"{HALLU['question']} A. Oban  B. Esbjerg"
    assert "2_hop" not in {x.kind for x in one.consequences}
    counts = audit_report(report)
    assert counts.count("portability_answer_absent") == 1
    assert counts.count("locality_answer_absent") == 2 and counts.count("no_locality") == 2
    lines, code = check_paths([path])
    assert code == 0
    assert "  scored by wild_judge, wild, token_accuracy; measurements: portability" in lines


def test_a_locality_question_with_an_answer_is_a_probe() -> None:
    (edit,) = read({**HALLU, "locality_answer": "1987"})
    assert [(x.prompt, x.answer) for x in edit.locality] == [("When was Maribel launched?", "1987")]
    (edit,) = read({**HALLU, "output_other": "Tiree"})  # two models' answers: neither is the old
    assert edit.old_target is None
