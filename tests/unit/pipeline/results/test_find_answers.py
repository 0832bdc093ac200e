"""Answers in words as people read them: in the lake, the terminal, the report and MLflow."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
from mlflow import MlflowClient
from rich.cells import cell_len
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.results.answers_html import marked
from pipeline.results.answers_text import WIDTH, clipped, render_answers, ten_edits
from pipeline.results.diff import diff_lakes
from pipeline.results.find_answers import find_answers, spread
from pipeline.results.lake.lake import Lake, LakeError
from pipeline.results.lake.records import CellResult
from pipeline.results.query import QueryError, query
from pipeline.results.report import write_report
from pipeline.results.tracking.tracker import Tracker
from tests.unit.helpers.lake_fixtures import address, cell

HARD = 'He said "no",\nthen\tleft; naïve \u4e1c\u4eac \U0001f600 <b>O\'Neil</b> \x1b[31m\x07'
PROBES = ("edit", "rephrase", "locality")


def row(checkpoint: int, i: int, probe: str, answer: str | None, **more: Any) -> dict[str, Any]:
    target = f"target {i}"
    return {
        "checkpoint": checkpoint,
        "edit_index": i,
        "edit_id": f"fact-{i:04d}",
        "probe": probe,
        "probe_index": 0,
        "prompt": f"{probe} prompt of edit {i} is",
        "target": target,
        "answer": answer,
        "tokens": [1, 2, i],
        "target_logprob": -1.5 - i,
        "is_target": answer == target,
        "has_target": target in (answer or ""),
        "superseded": False,
    } | more


def answered(editor: str, rate: int = 2, *, n: int = 10, **address_of: Any) -> CellResult:
    """A cell of which every so manyth edit has taken."""
    rows = []
    for i in range(0, 4 * n, 4):
        for probe in PROBES:
            before = f"old answer {i}"
            taken = f"target {i} of course" if probe != "locality" else f"Old answer {i}."
            rows.append(row(0, i, probe, before))
            rows.append(row(40, i, probe, taken if i // 4 % rate == 0 else f"wrong answer {i}"))
    return dataclasses.replace(cell(editor=editor, **address_of), answers=rows)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(answered("rledit"))
    lake.commit(answered("ultraedit", 5))
    lake.commit(answered("none", 100))
    return lake


def test_texts_come_back_as_they_went_in(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    rows = [
        row(0, 1, "edit", "", prompt=HARD, target=HARD, tokens=[]),
        row(40, 1, "edit", HARD, prompt=HARD, target=HARD),
        row(40, 1, "rephrase", None, target_logprob=math.nan),
        row(40, 2, "rephrase", "x", target_logprob=-math.inf),
    ]
    record = lake.commit(dataclasses.replace(cell(), answers=rows))
    back = lake.result(record, tables=("answers",)).answers
    assert isinstance(back, dict)
    found = [dict(zip(back, values, strict=True)) for values in zip(*back.values(), strict=True)]
    assert found[:2] == rows[:2]
    assert [r["answer"] for r in found[2:]] == [None, "x"]
    # What is not finite is no number in the table, and none in its JSON or in MLflow's.
    assert [r["target_logprob"] for r in found[2:]] == [None, None]
    (path,) = Path(lake.storage.local_path("answers") or "").rglob("*.parquet")
    plain = duckdb.sql(f"SELECT answer, tokens FROM read_parquet('{path}') WHERE checkpoint = 40")
    assert plain.fetchall()[0] == (HARD, [1, 2, 1])
    assert lake.verify(record.address.cell_key) == []


def test_a_cell_without_answers_is_whole_as_ever(lake: Lake) -> None:
    record = lake.commit(cell(seed=1))
    assert set(record.files) == {"edits", "steps", "scores"} and lake.is_done(record.address)
    assert lake.columns("answers", record)["prompt"] == []
    assert lake.result(record).answers == {name: [] for name in row(0, 0, "edit", "")}
    assert query("SELECT count(*) FROM answers WHERE seed = 1", lake).rows == ((0,),)


def test_a_rerun_without_answers_leaves_none_behind(lake: Lake) -> None:
    folder = Path(lake.storage.local_path("answers") or "")
    assert len(list(folder.rglob("*.parquet"))) == 3
    lake.commit(cell(editor="ultraedit", noise=1))
    assert len(list(folder.rglob("*.parquet"))) == 2
    stray = lake.record(address(editor="rledit"))
    assert stray is not None
    name = stray.files["answers"]["path"]
    lake.storage.write_bytes(name.replace(name[-20:-8], "0" * 12), b"left")
    assert lake.garbage_collect("demo") == [name.replace(name[-20:-8], "0" * 12)]
    assert lake.is_done(stray.address)


def test_a_cut_table_of_answers_makes_a_cell_incomplete(lake: Lake) -> None:
    record = lake.record(address(editor="rledit"))
    assert record is not None
    lake.storage.write_bytes(record.files["answers"]["path"], b"short")
    again = lake.record(address(editor="rledit"))
    assert again is not None and again.status == "incomplete"
    assert "answers shard" in (again.reason or "")


def test_one_answer_to_a_prompt_and_moment(tmp_path: Path) -> None:
    twice = [row(0, 1, "edit", "a"), row(0, 1, "edit", "b")]
    with pytest.raises(LakeError, match="rows 0 and 1 are both checkpoint=0, edit_index=1"):
        Lake(str(tmp_path)).commit(dataclasses.replace(cell(), answers=twice))


def test_a_diff_compares_answers_where_both_have_them(lake: Lake, tmp_path: Path) -> None:
    other = Lake(str(tmp_path / "other"))
    other.commit(answered("rledit"))
    other.commit(answered("ultraedit", 5))
    other.commit(dataclasses.replace(answered("none"), answers=()))
    found = diff_lakes(lake, other)
    assert found.equal and "only A has answers; not judged" in found.lines[-1]
    other.commit(answered("ultraedit", 3))
    found = diff_lakes(lake, other)
    assert not found.equal and any("answers.answer" in line for line in found.lines)


def test_the_view_has_before_and_after_in_one_row(lake: Lake) -> None:
    sql = "SELECT before, answer, had_target, has_target FROM answers WHERE editor = 'rledit' "
    found = query(sql + "AND probe = 'edit' ORDER BY edit_index LIMIT 2", lake).rows
    assert found == (
        ("old answer 0", "target 0 of course", False, True),
        ("old answer 4", "wrong answer 4", False, False),
    )


def test_answers_are_shown_by_edit_with_every_editor(lake: Lake) -> None:
    text = render_answers(find_answers(lake, "demo", probes=["edit"], n=2))
    assert text.splitlines()[:8] == [
        "tiny-llama · world · 4×10, seed 0: answers before and after all 40 edits; 10 were asked",
        "",
        "edit 1: edit prompt of edit 0 is",
        "    target     target 0",
        "  ✗ unedited   old answer 0",
        "  ✓ ultraedit  target 0 of course",
        "  ✓ rledit     target 0 of course",
        "",
    ]
    assert "edit 37: edit prompt of edit 36 is" in text  # the last of those asked
    assert (
        "edit prompts that say the target: unedited 0 of 2, ultraedit 1 of 2, rledit 1 of 2" in text
    )
    assert "also asked: rephrase, locality (--probe all shows them)" in text


def test_a_locality_prompt_holds_where_the_answer_stays(lake: Lake) -> None:
    (asked,) = find_answers(lake, "demo", probes=["locality"], editors=["rledit"])
    # "Old answer 0." is "old answer 0", though neither is the dataset's answer.
    assert [q.said[0].held for q in asked.questions] == [True, False] * 5
    assert "locality prompts that keep their answer: rledit 5 of 10" in render_answers([asked])


def test_what_a_later_edit_says_is_held_against_nobody(lake: Lake) -> None:
    rows = [row(0, 3, "edit", "a"), row(40, 3, "edit", "target 3", superseded=True)]
    lake.commit(dataclasses.replace(cell(editor="ft"), answers=rows))
    (asked,) = find_answers(lake, "demo", editors=["ft"])
    assert asked.questions[0].said[0].held is None
    text = render_answers([asked])
    assert "  · ft        target 3" in text and "ft 0 of 0" in text


def test_the_longest_stream_and_the_first_seed_unless_a_condition_chooses(lake: Lake) -> None:
    longer = answered("rledit", n_batches=8, seed=1)
    lake.commit(longer)
    (asked,) = find_answers(lake, "demo")
    assert asked.stream == (8, 10) and asked.seed == 1
    (asked,) = find_answers(lake, "demo", where="seed = 0 AND NOT has_target")
    assert asked.stream == (4, 10) and asked.editors == ["ultraedit", "rledit"]
    assert not any(s.held for q in asked.questions for s in q.said if q.probe == "edit")
    (asked,) = find_answers(lake, "demo", where="answer LIKE 'wrong%' -- a remark")
    assert {s.answer for q in asked.questions for s in q.said if s.answer} == {
        f"wrong answer {i}" for i in range(4, 40, 8)
    }


def test_the_last_checkpoint_unless_a_condition_chooses(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    rows = [row(n, 3, "edit", f"after {n}") for n in (0, 20, 40)]
    lake.commit(dataclasses.replace(cell(), answers=rows))
    (asked,) = find_answers(lake, "demo")
    assert asked.n_edits == 40 and asked.questions[0].said[0].answer == "after 40"
    (asked,) = find_answers(lake, "demo", where="checkpoint = 20")
    assert asked.n_edits == 20 and asked.questions[0].said[0].answer == "after 20"


def test_variants_are_told_apart(lake: Lake) -> None:
    lake.commit(answered("rledit", 1, variant="big"))
    (asked,) = find_answers(lake, "demo", editors=["rledit/big"])
    assert asked.editors == ["rledit (big)"]
    (asked,) = find_answers(lake, "demo", editors=["rledit"])
    assert asked.editors == ["rledit", "rledit (big)"]
    (asked,) = find_answers(lake, "demo", editors=["unedited"])
    assert asked.editors == ["unedited"]


def test_no_line_is_wider_than_the_terminal_and_none_controls_it(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    wide = "東京は日本の首都である。" * 30
    rows = [
        row(0, 1, "edit", HARD * 5, prompt="word " * 60 + "capital is", target=wide),
        row(40, 1, "edit", wide, prompt="word " * 60 + "capital is", target=wide),
        row(0, 2, "edit", None, prompt=wide),
        row(40, 2, "edit", "", prompt=wide),
    ]
    long_names = {"variant": "v" * 60, "model": "m" * 70, "dataset": "d" * 70}
    for editor in ("rledit", "ft", "ultraedit", "mend"):
        lake.commit(dataclasses.replace(cell(editor=editor, **long_names), answers=rows))
    found = find_answers(lake, "demo")
    for text in (render_answers(found), ten_edits(lake, "demo", "rledit")):
        assert max(cell_len(line) for line in text.splitlines()) <= WIDTH
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "capital is" in text  # the end of a prompt is what the answer follows
    text = render_answers(found)
    assert "(nothing)" in text and "(no numbers)" in text


def test_clipping_keeps_the_end_that_matters() -> None:
    assert clipped("abcdef", 6) == "abcdef"
    assert clipped("abcdefg", 6) == "abcde…"
    assert clipped("abcdefg", 6, keep_end=True) == "…cdefg"
    assert cell_len(clipped("東京大阪", 5)) <= 5


def test_ten_edits_before_and_after_in_words(lake: Lake) -> None:
    lines = ten_edits(lake, "demo").splitlines()
    assert lines[:4] == [
        "10 edits before and after, in words: rledit on tiny-llama, world, after all 40 edits",
        "   1. edit prompt of edit 0 is  [to become: target 0]",
        "      ✗ before  old answer 0",
        "      ✓ after   target 0 of course",
    ]
    assert lines[-1] == "      0 of 10 say the new answer before, 5 after"
    assert (
        ten_edits(lake, "demo", "ultraedit")
        .splitlines()[0]
        .startswith("10 edits before and after, in words: ultraedit on ")
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"grid": "dmo"}, r"no cells of grid 'dmo' here; did you mean 'demo'\? Grids there: demo"),
        ({"editors": ["rldit"]}, "--editor rldit: .*did you mean 'rledit'.*There are: .*ultraedit"),
        ({"models": ["gpt"]}, "--model gpt: .*There are: tiny-llama"),
        ({"datasets": ["zsre"]}, "--dataset zsre: .*There are: world"),
        ({"probes": ["portability"]}, "--probe portability: .*There are: edit, locality, rephrase"),
        ({"where": "seed = 7"}, "has 90 answers, and none that all these filters.*--editor none"),
        ({"where": "sed = 7"}, 'column "sed" not found(.|\n)*answers: grid, cell'),
        ({"where": "seed ="}, "syntax error(.|\n)*Views: runs, edits, answers"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(
    lake: Lake, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(QueryError, match=told):
        find_answers(lake, **{"grid": "demo"} | arguments)


def test_cells_without_answers_say_how_to_get_some(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.record_failure(address(editor="ft"), "too large", identity={}, code_version="1")
    with pytest.raises(QueryError, match="no finished cell yet .1 failed."):
        find_answers(lake, "demo")
    lake.commit(cell())
    with pytest.raises(QueryError, match=r"no answers in words: .*1 done, 1 failed.*--lake LAKE"):
        find_answers(lake, "demo")


def test_spread() -> None:
    assert spread(range(10), None) == list(range(10)) == spread(range(10), 10)
    assert spread(range(10), 3) == [0, 4, 9] and spread(range(10), 1) == [0]


def test_the_command(lake: Lake) -> None:
    def typed(*words: str) -> str:
        done = CliRunner().invoke(app, ["answers", "demo", "--lake", str(lake.storage), *words])
        assert done.exit_code == 0, done.output
        return done.output

    shown = typed("--editor", "rledit", "--probe", "all", "-n", "1", "--where", "NOT superseded")
    assert "edit 1, locality: locality prompt of edit 0 is" in shown and "ultraedit" not in shown
    assert typed().count("edit prompt of edit") == 10
    wrong = CliRunner().invoke(app, ["answers", "demo", "--probe", "rephrases"])
    assert wrong.exit_code == 2


@pytest.mark.long
def test_the_report_shows_twenty_rows_with_changed_words_marked(lake: Lake, tmp_path: Path) -> None:
    hard = [row(n, 39, "edit", f"{'old' if n else 'new'} {HARD}", prompt=HARD) for n in (0, 40)]
    lake.commit(dataclasses.replace(cell(editor="ft"), answers=hard))
    page = Path(write_report(lake, "demo", tmp_path / "demo.html")).read_text()
    section = page[page.index('<h2 id="answers">') :]
    methods = dict(re.findall(r"<summary>(\w+) <span.*?</summary>\n(.*?)</details>", section, re.S))
    assert set(methods) >= {"ultraedit", "rledit", "ft"} and "unedited" not in methods
    rows = [r for r in methods["rledit"].split("<tr>") if 'data-is="after"' in r]
    assert 15 <= len(rows) <= 20
    assert '<td data-is="before"><del>old answer</del> 0</td>' in rows[0]
    assert '<td data-is="after"><ins>target</ins> 0<ins> of course</ins></td>' in rows[0]
    assert "edit 37, locality" in rows[-1]  # to the end of the stream
    assert "&lt;b&gt;O&#39;Neil" in methods["ft"]
    assert "<b>" not in methods["ft"] and "\x1b" not in page


@pytest.mark.long
def test_a_report_without_answers_has_no_such_section(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.commit(cell())
    page = Path(write_report(lake, "demo", tmp_path / "demo.html")).read_text()
    assert 'id="answers"' not in page


def test_words_that_differ_are_marked() -> None:
    assert marked("Lima, Peru", "Oslo, Peru") == (
        "<del>Lima</del>, Peru",
        "<ins>Oslo</ins>, Peru",
    )
    assert marked("a <i> b", "a <i> b") == ("a &lt;i&gt; b", "a &lt;i&gt; b")


@pytest.mark.long
def test_a_tracked_run_has_the_answers_as_a_table(lake: Lake, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(uri, "demo")
    assert tracker.rebuild(lake) == 3 and tracker.rebuild(lake) == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id], "tags.editor = 'rledit'")
    path = client.download_artifacts(runs[0].info.run_id, "answers.json", str(tmp_path))
    table = json.loads(Path(path).read_text())
    rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    assert len(rows) == 30
    assert {k: rows[0][k] for k in ("edit", "probe", "before", "after", "says_target")} == {
        "edit": 1, "probe": "edit", "before": "old answer 0", "after": "target 0 of course",
        "says_target": True,
    }  # fmt: skip
    # Other answers are another run; a store of artifacts that is away costs the table alone.
    record = lake.commit(answered("rledit", 3))
    blocked = tmp_path / "artifacts"
    for each in sorted(blocked.rglob("*"), reverse=True):
        each.unlink() if each.is_file() else each.rmdir()
    blocked.rmdir()
    blocked.write_text("in the way")
    run_id = tracker.log_cell(tracker.start("again"), lake.result(record))
    assert run_id != runs[0].info.run_id
    assert client.get_run(run_id).info.status == "FINISHED"
