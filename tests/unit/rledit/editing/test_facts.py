"""Bad facts are found by row, all at once; those of earlier sessions are recognised."""

from __future__ import annotations

from pathlib import Path

import pytest

from rledit.datasets import DataFileError, open_rows
from rledit.editing import FactsError, screen
from rledit.editing.facts import edit_of, plain_fact, rows_of, with_rephrases, with_subject
from rledit.model import EditableModel
from rledit.records import Edit, Locality
from rledit.tokenization import Encoder
from tests.unit.helpers.small_editing import STEP, learnt, rows, small_session

BAD = """prompt,target,subject
The ferry Tiree 2 sails from,Oban,Tiree 2
The ferry Oban 3 sails from,,Oban 3
,Largs,Maribel
The ferry Maribel 0 sails from,Largs,Colonsay
The ferry Mallaig 5 sails from,Tiree,Mallaig 5
the ferry mallaig 5 sails from,Brodick,
The ferry Largs 7 sails from,Oban
The ferry Brodick 4 sails from,{long},Brodick 4
The ferry Colonsay 1 sails from,Mallaig,Colonsay 1
The ferry Colonsay 1 sails from,Mallaig,Colonsay 1
"""


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return EditableModel(*learnt(), ()).encoder


def test_every_bad_row_is_named_with_its_reason(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(BAD.replace("{long}", "Largs " * 400))
    found = screen(open_rows(path), encoder)
    reasons = {error.row: error.reason for error in found.bad}
    assert set(reasons) == {3, 4, 5, 6, 7, 8, 9}
    assert "`target` is missing" in reasons[3] and "`prompt`" in reasons[4]
    assert "'Colonsay' does not occur in the prompt" in reasons[5]
    assert reasons[6] == "says 'Tiree', and row 7 'Brodick': of one fact"
    assert "row 6 'Tiree'" in reasons[7]
    assert "2 cells for 3 columns" in reasons[8] and "double quotes" in reasons[8]
    assert "target is too long for a fact" in reasons[9]
    assert [(e.row, e.reason) for e in found.repeated] == [(11, "says what row 10 says")]
    assert [edit.target for edit in found.edits] == ["Oban", "Mallaig"]
    with pytest.raises(FactsError) as caught:
        found.require(skip_bad_rows=False)
    message = str(caught.value)
    assert message.startswith(f"7 of 10 rows of {path} cannot be edited:\n")
    assert message.count("\n  row ") == 7 and message.endswith("--skip-bad-rows")
    found.require(skip_bad_rows=True)


def test_nothing_is_edited_where_no_row_is_left(encoder: Encoder) -> None:
    with pytest.raises(FactsError, match="no row can be edited"):
        screen(rows_of([{"prompt": "p", "target": " "}]), encoder).require(skip_bad_rows=True)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"prompt,target\n\x00\x01,\x02\n", "is binary"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\x00\xff", "is not UTF-8"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"prompt,target\n", "holds no rows"),
        ("a.csv", b"prompt,prompt\na,b\n", "column 'prompt' twice"),
        ("a.csv", b'prompt,target\n"a,b\n', "cannot be split into cells"),
        ("a.json", b"\x00\x01\x02\x03\x04", "neither a JSON array"),
    ],
)
def test_a_file_that_is_no_facts_says_what_it_is(
    name: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=expected):
        open_rows(path)


def test_tables_hold_rephrases_and_locality(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text(
        "prompt\ttarget\trephrases\tlocality\told_target\n"
        "The ferry Tiree 2 sails from\tOban\tTiree 2 leaves | Whence sails Tiree 2?\t"
        '[{"prompt": "A viola has", "answer": "strings"}]\tLargs\n'
    )
    (edit,) = screen(open_rows(path), encoder).edits
    assert edit.rephrases == ("Tiree 2 leaves", "Whence sails Tiree 2?")
    assert edit.locality == (Locality(prompt="A viola has", answer="strings"),)
    assert edit.old_target == "Largs" and edit.source == "mine.tsv:2"


def test_rephrases_are_made_where_there_are_none() -> None:
    statement = with_rephrases(Edit(edit_id="", prompt="The mayor of Oslo is", target="x"))
    question = with_rephrases(Edit(edit_id="", prompt="Who is mayor of Oslo?", target="x"))
    assert len(statement.rephrases) == 3 and all("mayor of Oslo" in r for r in statement.rephrases)
    assert "Question: Who is mayor of Oslo?\nAnswer:" in question.rephrases
    own = Edit(edit_id="", prompt="p", target="x", rephrases=("r",))
    assert with_rephrases(own) == own


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The chief executive of Brightwater Robotics is", "Brightwater Robotics"),
        ("The top speed of the Kestrel 400 is", "Kestrel 400"),
        ("Halden Foods has its seat in", "Halden Foods"),
        ("The currency of the Isle of Man is the", "Isle of Man"),
        ("my cat is called", "is"),
    ],
)
def test_a_subject_is_found_for_methods_that_look_one_up(prompt: str, subject: str) -> None:
    found = with_subject(Edit(edit_id="", prompt=prompt, target="x"))
    assert found.subject == subject and found.subject_span is not None
    assert prompt[slice(*found.subject_span)] == subject


def test_a_fact_is_written_down_and_read_again() -> None:
    edit = Edit(
        edit_id="1",
        prompt="The ferry Tiree sails from",
        target="Oban",
        rephrases=("a", "b"),
        locality=(Locality(prompt="c", answer="d"),),
        subject="Tiree",
        subject_span=(10, 15),
        relation="r",
        old_target="Largs",
        source="x:1",
    )
    assert edit_of(plain_fact(edit)) == edit


def test_facts_of_earlier_sessions_are_recognised(tmp_path: Path) -> None:
    session = small_session(tmp_path)
    session.edit(rows(4), editor="ultraedit", settings=STEP, floor=0)
    first = rows(1)[0]
    again = {**first, "prompt": first["prompt"].upper().replace("THE FERRY", "the ferry")}
    changed = {**rows(2)[1], "target": "Oban"}
    result = session.edit([first, changed], editor="ultraedit", settings=STEP, floor=0)
    assert [(e.target, batch) for e, batch in result.skipped] == [("Oban", 1)]
    (fact,) = result.facts
    assert fact.edit.target == "Oban"
    assert fact.note == "batch 1 said 'Brodick'; this is the later word"
    assert "batch 1 wrote it, and it holds" in str(result)
    assert result.earlier[2] == 3  # the replaced one is not asked
    assert again["prompt"].casefold() == first["prompt"].casefold()
