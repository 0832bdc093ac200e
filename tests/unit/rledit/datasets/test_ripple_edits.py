"""RippleEdits: whole statements are taken apart, and six kinds of tests become probes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from rledit.datasets import FORMATS, RowErrors, audit_report, check_paths, read_edits
from rledit.records import Edit, Premise

EXAMPLE = dict(FORMATS["ripple_edits"].example)


def row(statement: str, former: str | None = None, **changes: Any) -> dict[str, Any]:
    """A row whose tests do not name the target."""
    edit: dict[str, Any] = {"prompt": statement, "subject_id": "Q1", "target_id": "Q9"}
    if former is not None:
        edit["original_fact"] = {"prompt": former, "subject_id": "Q1", "target_id": "Q8"}
    return {**copy.deepcopy(EXAMPLE), "edit": edit, "Subject_Aliasing": [], **changes}


def test_case(prompt: str | None, *answers: Any, **query: Any) -> dict[str, Any]:
    listed = [{"value": value, "aliases": []} for value in answers]
    return {"test_queries": [{"prompt": prompt, "answers": listed, **query}]}


test_case.__test__ = False  # type: ignore[attr-defined]


def read(*rows: dict[str, Any]) -> list[Edit]:
    return list(read_edits("a.json", rows=rows).edits)


@pytest.mark.parametrize(
    ("statement", "former", "prompt", "target", "old"),
    [
        ("The capital of Ardmore is Tella.", None, "The capital of Ardmore is", "Tella", None),
        (
            "The names of the siblings of Ann are Bo.",
            "The names of the siblings of Ann are Cy.",
            "The names of the siblings of Ann are",
            "Bo",
            "Cy",
        ),
        ("Tide, season 2 follows Tide, season 1.", None, "Tide, season 2 follows", "Tide, s", None),
        ("Dawn is followed by The Dusk.", None, "Dawn is followed by", "The Dusk", None),
        # The targets have their first word in common, and the subject holds a linking word.
        (
            "The name of the father of Life is Fair is John Smith, Jr..",
            "The name of the father of Life is Fair is John Doe.",
            "The name of the father of Life is Fair is",
            "John Smith, Jr.",
            "John Doe",
        ),
        # The answer holds one, which the former fact's statement shows.
        (
            "The anthem of Ardmore is The Tide is High.",
            "The anthem of Ardmore is Dawn.",
            "The anthem of Ardmore is",
            "The Tide is High",
            "Dawn",
        ),
        ("The spouse of Ann is Bo.", "The spouse of Ann is .", "The spouse of Ann is", "Bo", None),
    ],
)
def test_a_statement_is_taken_apart(
    statement: str, former: str | None, prompt: str, target: str, old: str | None
) -> None:
    (edit,) = read(row(statement, former))
    assert (edit.prompt, edit.old_target) == (prompt, old)
    assert edit.target.startswith(target) and f"{edit.prompt} {edit.target}." == statement


def test_a_test_that_names_the_target_decides_where_it_begins() -> None:
    statement = "The anthem of Ardmore is The Tide is High."
    named = [test_case("Ardmore sings", "The Tide is High", target_ids=["Q9"])]
    (edit,) = read(row(statement, Subject_Aliasing=named))
    assert (edit.prompt, edit.target) == ("The anthem of Ardmore is", "The Tide is High")
    second = [test_case("Ann's country sings", "The Tide is High", second_hop_target_ids=["Q9"])]
    second[0]["test_queries"][0] |= {"query_type": "two_hop", "target_ids": ["Q4"]}
    assert read(row(statement, Compositionality_II=second))[0].target == "The Tide is High"
    report = read_edits("a.json", rows=[row(statement), row(statement, Subject_Aliasing=named)])
    assert [edit.target for edit in report.edits] == ["High", "The Tide is High"]
    found = next(x for x in audit_report(report).traps if x.name == "statement_ambiguous")
    assert found.examples == ("a.json:1",)


def test_what_stays_is_locality_and_what_follows_is_portability() -> None:
    (edit,) = read(EXAMPLE)
    assert (edit.prompt, edit.target, edit.old_target) == (
        "The name of the harbour of Maribel is", "Esbjerg", "Oban",
    )  # fmt: skip
    assert [(x.prompt, x.answer) for x in edit.locality] == [
        ("The year of launch of Maribel is", "1987")
    ]
    found = {item.kind: item for item in edit.consequences}
    assert set(found) == {"Subject_Aliasing", "Compositionality_I"}
    assert found["Subject_Aliasing"].answers == ("Esbjerg", "Port of Esbjerg")
    assert found["Compositionality_I"].premises == (
        Premise(answers=("Denmark",), subject="Esbjerg", relation="COUNTRY",
                old_answers=("Denmark",)),
    )  # fmt: skip
    kept = [test_case("The harbours of Maribel, which are not Esbjerg, are", "Oban")]
    (edit,) = read({**EXAMPLE, "Forgetfulness": kept})
    assert [probe.answer for probe in edit.locality] == ["1987", "Oban"]


def test_the_subject_is_known_where_a_test_names_it() -> None:
    named = [test_case("The ferry of Esbjerg is", "Maribel", target_ids=["Q1"])]
    assert read({**EXAMPLE, "Logical_Generalization": named})[0].subject == "Maribel"
    assert read(EXAMPLE)[0].subject is None


def test_queries_without_an_answer_are_left_out_and_counted() -> None:
    rows = [
        {
            **EXAMPLE,
            "Relation_Specificity": [
                test_case("The pilot of Maribel is", ""),
                test_case(None, "x"),
            ],
            "Logical_Generalization": [test_case("She sails from", None)],
        }
    ]
    report = read_edits("a.json", rows=rows)
    assert report.edits[0].locality == ()
    counts = audit_report(report)
    assert counts.count("locality_answer_absent") == 2
    assert counts.count("portability_answer_absent") == 1


def test_rows_that_cannot_be_taken_apart_are_named_together(tmp_path: Path) -> None:
    bad = [row("The capital of Ardmore: Tella."), EXAMPLE, {**EXAMPLE, "edit": "Tella"}]
    with pytest.raises(RowErrors) as caught:
        read_edits("a.json", rows=bad)
    assert str(caught.value) == (
        "2 rows of a.json cannot be mapped:\n"
        "a.json, row 1: `edit.prompt` does not say where its answer begins; expected a statement "
        "such as 'The capital of X is Y.', found 'The capital of Ardmore: Tella'; leave the row "
        "out\n"
        "a.json, row 3: `edit` is text, not an object: 'Tella'"
    )


def test_the_check_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "popular.json"
    path.write_text(json.dumps([EXAMPLE]))
    lines, code = check_paths([path])
    assert code == 0
    assert (
        "  format    ripple_edits: RippleEdits: recent, random, popular (arXiv 2307.12976)" in lines
    )
    assert "  scored by generation_contains, token_accuracy; measurements: portability" in lines
    assert (
        "  asks      1 locality prompts, 2 questions that follow (Compositionality_I 1, "
        "Subject_Aliasing 1)" in lines
    )
