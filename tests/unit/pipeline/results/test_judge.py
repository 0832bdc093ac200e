"""Judged answers: what is asked, what is kept, who is refused, and that a key stays unseen."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.results.judge.endpoint import Endpoint, Judge, JudgeError, open_endpoint
from pipeline.results.judge.gate import CASES
from pipeline.results.judge.judging import Judged, judge_grid, waiting
from pipeline.results.judge.prompt import judge_prompt, verdict_of
from pipeline.results.lake.contained import ContainedCell
from pipeline.results.lake.lake import Lake
from pipeline.results.query import query, runs
from pipeline.results.rendering import render_table
from pipeline.results.tables import build_table
from tests.unit.helpers.judge_server import JudgeServer, honest, judge_server
from tests.unit.helpers.lake_fixtures import cell

KEY = "sk-very/secret+0123456789"
GATE = len(CASES)
N = 8  # edits of a stream


def free_rows(editor: str) -> list[dict[str, Any]]:
    """Free answers of a stream of `N` edits, scored before it, in its middle and at its end.

    At its end edit 0 is superseded, and a rephrase of edit 1 counts no more.
    """
    rows = []
    for checkpoint in (0, N // 2, N):
        for i in range(checkpoint or N):
            for probe in ("edit", "rephrase"):
                right = checkpoint and (i % 2 == 0 or probe == "edit")
                answer = f"the target {i}" if right else "something else"
                rows.append(
                    {
                        "checkpoint": checkpoint,
                        "edit_index": i,
                        "edit_id": f"e{i}",
                        "probe": probe,
                        "probe_index": 0,
                        "prompt": f"{probe} {i} is",
                        "target": f"Target {i}",
                        "answer": answer if checkpoint or i else "",
                        "matches": bool(right),
                        "counted": not (checkpoint == N and i == 1 and probe == "rephrase"),
                        "superseded": checkpoint == N and i == 0,
                    }
                )
    assert editor
    return rows


def fill(lake: Lake, *editors: str) -> None:
    """Cells with free answers that nobody has judged, as a run leaves them."""
    for editor in editors or ("rledit",):
        made = cell(editor=editor, protocols=("exact_match", "wild_judge"), batch_size=2)
        scores = [dict(row) for row in made.scores]
        first = next(row for row in scores if row["protocol"] == "wild_judge")
        scores.append({**first, "checkpoint": 0, "n_edits": 0, "final": False})
        for row in [*made.edits, *scores]:
            if row["protocol"] == "wild_judge":
                row |= {"efficacy": None, "generalization": None, "specificity": None}
        lake.commit(dataclasses.replace(made, scores=scores, free_answers=free_rows(editor)))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def judged(lake: Lake, server: JudgeServer, key: str = "", **options: Any) -> Judged:
    endpoint = Endpoint(url=server.url, model="grader", key=key)
    return judge_grid(lake, "demo", Judge(endpoint, first_wait=0.01, **options))


def everything_in(lake: Lake) -> bytes:
    return b"".join(lake.storage.read_bytes(name) for name in lake.storage.list())


def test_verdicts_become_scores_and_every_question_is_asked_once(lake: Lake) -> None:
    fill(lake, "rledit", "ultraedit")
    before = lake.manifest("demo")
    assert waiting(before) == 2
    with judge_server() as server:
        found = judged(lake, server)
        assert len(server.asked) == len(set(server.asked))
        # The unedited answers and the edited ones of each place; both cells say the same.
        assert found.distinct == found.asked == len(server.asked) - GATE
        assert (found.cells, found.unparsable, found.agreement) == (2, 0, 100.0)
        again = judged(lake, server)
        assert again.asked == 0 and len(server.asked) == found.distinct + GATE
        assert dataclasses.replace(again, asked=found.asked) == found
    rows = [r for r in runs(lake, "demo", final=False) if r["protocol"] == "wild_judge"]
    scored = {r["n_edits"]: (r["efficacy"], r["generalization"]) for r in rows}
    # At the end edits 1 to 7 stand; rephrases of 2, 4, 6 are right, of 3, 5, 7 wrong.
    assert scored == {0: (0, 0), N // 2: (100, 50), N: (100, 50)}
    edits = query(
        f"SELECT * FROM edits WHERE protocol = 'wild_judge' AND checkpoint = {N}", lake
    ).dicts()
    own = {r["edit_index"]: (r["efficacy"], r["generalization"]) for r in edits}
    assert own[0] == (None, None)  # superseded: nobody is asked
    assert own[1] == (100, None) and own[2] == (100, 100) and own[3] == (100, 0)
    after = lake.manifest("demo")
    assert waiting(after) == 0
    assert [r.address for r in after] == [r.address for r in before]
    other = [r for r in runs(lake, "demo") if r["protocol"] == "exact_match"]
    assert all(r["efficacy"] is not None for r in other)


def test_a_request_holds_the_question_and_nothing_of_chance(lake: Lake) -> None:
    fill(lake)
    with judge_server() as server:
        judged(lake, server)
        body = server.requests[-1]
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("grader", 0, 4)
        system, user = body["messages"]
        assert system == {"role": "system", "content": ""}
        assert user["content"] == judge_prompt(*server.asked[-1])
        assert set(server.keys) == {None}


def test_judge_and_date_are_recorded_and_tables_say_who_judged(lake: Lake) -> None:
    fill(lake)
    (waits,) = [n for n in build_table(runs(lake, "demo")).notes if n.startswith("wild_judge")]
    assert waits == "wild_judge: the answers of 1 cell are not judged yet."
    with judge_server() as server:
        judged(lake, server)
    (record,) = lake.manifest("demo")
    about = record.values["resolved"]["judge"]
    assert (about["model"], about["urls"], about["prompt_version"]) == ("grader", [server.url], 1)
    text = render_table(build_table(runs(lake, "demo")), "md")
    day = about["to"][:10]
    assert f"the judge is the language model grader (prompt 1, {day})" in " ".join(text.split())
    raw = query("SELECT DISTINCT judge, reply, verdict FROM free_answers ORDER BY ALL", lake).rows
    assert raw == (("grader", "A", True), ("grader", "B", False), (None, None, None))


def test_replies_that_say_neither_count_apart_and_in_no_mean(lake: Lake) -> None:
    fill(lake)

    def reply(question: str, gold: str, answer: str) -> str:
        return "I would say A" if question == "edit 3 is" else honest(question, gold, answer)

    with judge_server(reply=reply) as server:
        found = judged(lake, server)
    assert found.unparsable == 3  # at each of the three checkpoints
    rows = query("SELECT * FROM edits WHERE protocol = 'wild_judge' AND edit_index = 3", lake)
    assert {row["efficacy"] for row in rows.dicts()} == {None}
    curve = query("SELECT step, value FROM curves WHERE metric = 'judge_unparsable'", lake).rows
    assert dict(curve) == {0: 1.0, N // 2: 1.0, N: 1.0}
    final = [r for r in runs(lake, "demo") if r["protocol"] == "wild_judge"]
    assert [r["efficacy"] for r in final] == [100]
    notes = " ".join(build_table(runs(lake, "demo")).notes)
    assert "3 replies say neither right nor wrong and count in no mean" in notes
    raw = query("SELECT reply FROM free_answers WHERE verdict IS NULL AND judge = 'grader'", lake)
    assert {reply for (reply,) in raw.rows} == {"I would say A"}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("A", True), (" A.\n", True), ("CORRECT", True), ("B", False), ("B.", False),
     ("INCORRECT", False), ("", None), ("A, because", None), ("AB", None), ("a", None)],
)  # fmt: skip
def test_only_a_letter_or_its_word_is_a_verdict(reply: str, verdict: bool | None) -> None:
    assert verdict_of(reply) is verdict


@pytest.mark.parametrize(
    ("reply", "wrong"),
    [
        (lambda *_: "A", "no answer: 0 of 6"),
        (lambda *_: "B", "the gold target: 0 of 6"),
        (lambda *_: "As a language model I cannot say", "the gold target: 0 of 6"),
        (lambda _, gold, answer: "A" if gold in answer else "B", "three times over: 0 of 6"),
        (lambda _, gold, answer: "B" if gold == answer else "A", "another target: 0 of 6"),
    ],
)
def test_a_judge_of_nonsense_is_refused_before_it_judges_anything(
    lake: Lake, reply: Any, wrong: str
) -> None:
    fill(lake)
    with judge_server(reply=reply) as server:
        with pytest.raises(JudgeError, match="is not fit to judge") as refused:
            judged(lake, server)
        assert wrong in str(refused.value)
        assert len(server.asked) == GATE
        assert waiting(lake.manifest("demo")) == 1
        # It is asked anew when it has been mended.
        server.reply = honest
        assert judged(lake, server).agreement == 100.0


def test_failures_that_pass_are_tried_again_and_others_are_not(lake: Lake) -> None:
    fill(lake)
    passing = [(429, {"Retry-After": "0.05"}, "slow down"), (500, {}, "oops"), (503, {}, ""),
               (200, {}, '{"error": "busy"}'), (200, {}, "no json")]  # fmt: skip
    with judge_server(refusals=list(passing)) as server:
        found = judged(lake, server)
        assert len(server.requests) == found.distinct + GATE + len(passing)
    with judge_server(refusals=[(400, {}, "no such model: grader")]) as server:
        other = Judge(Endpoint(url=server.url, model="another"), first_wait=0.01)
        with pytest.raises(JudgeError, match="HTTP 400 .*no such model: grader"):
            judge_grid(lake, "demo", other, parallel=1)
        assert len(server.requests) == 1
    with judge_server(refusals=[(500, {}, "down")] * 50) as server:
        other = Judge(Endpoint(url=server.url, model="another"), first_wait=0.001)
        with pytest.raises(JudgeError, match="failed 7 times: HTTP 500"):
            judge_grid(lake, "demo", other, parallel=1)
        assert len(server.requests) == 7


def test_a_contained_cell_that_asks_for_no_judge_waits_for_none(lake: Lake) -> None:
    fill(lake)
    (record,) = lake.manifest("demo")
    address = dataclasses.replace(record.address, grid="narrow", cell_key="narrow")
    identity = {**record.values["identity"], "protocols": ["exact_match"]}
    within = record.address.cell_key
    part = ContainedCell(address=address, identity=identity, n_edits=N, within=within)
    lake.contain([part])
    lake.show([address])
    assert len(lake.manifest("narrow")) == waiting(lake.manifest("demo")) == 1
    assert waiting(lake.manifest("narrow")) == 0


def test_no_more_is_asked_a_minute_than_is_allowed(lake: Lake) -> None:
    fill(lake)
    moments: list[float] = []

    def reply(*given: str) -> str:
        moments.append(time.monotonic())
        return honest(*given)

    with judge_server(reply=reply) as server:
        judged(lake, server, per_minute=3000)
    assert moments[-1] - moments[0] >= (len(moments) - 1) * 60 / 3000 * 0.8


def test_a_redirect_is_not_followed_with_the_key(lake: Lake) -> None:
    fill(lake)
    with judge_server() as other, judge_server() as server:
        server.refusals = [(307, {"Location": f"{other.url}/chat/completions"}, "")] * 9
        with pytest.raises(JudgeError, match="HTTP 307"):
            judged(lake, server, KEY)
        assert not other.requests


def asked_until_killed(lake: Lake, server: Any) -> list[Any]:
    """What a run has asked when it is killed, at the question that the server holds back."""
    command = [sys.executable, "-m", "pipeline.cli", "judge", "demo", "--model", "grader",
               "--judge-parallel", "1", "--lake", str(lake.storage.local_path())]  # fmt: skip
    process = subprocess.Popen([*command, "--judge", server.url], stderr=subprocess.DEVNULL)
    try:
        assert server.held.wait(120)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return list(server.asked)


def test_a_run_that_is_killed_goes_on_without_asking_again(lake: Lake) -> None:
    fill(lake)
    with judge_server(hold_at=GATE + 10) as server:
        answered = asked_until_killed(lake, server)
        assert len(answered) == GATE + 9
        server.released.set()
        server.asked.clear()
        found = judged(lake, server)
        # But for the reply that never came, all of them are known.
        later = [one for one in server.asked if one in answered]
        assert later == [] and found.asked == found.distinct - 9
    assert waiting(lake.manifest("demo")) == 0


def test_a_run_that_is_killed_inside_the_gate_goes_on_there(lake: Lake) -> None:
    fill(lake)
    with judge_server(hold_at=GATE // 2) as server:
        answered = asked_until_killed(lake, server)
        assert len(answered) == GATE // 2 - 1
        assert waiting(lake.manifest("demo")) == 1
        server.released.set()
        server.asked.clear()
        found = judged(lake, server)
        gate = {(c.asked.question, c.asked.gold, c.asked.answer) for c in CASES}
        assert set(answered) < gate and set(answered).isdisjoint(server.asked)
        assert len(gate & set(server.asked)) == GATE - len(answered)
        assert found.asked == found.distinct and found.agreement == 100.0
    assert waiting(lake.manifest("demo")) == 0


def test_a_key_is_sent_and_appears_nowhere(
    lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    fill(lake)
    monkeypatch.setenv("OWN_JUDGE_SETTING", KEY)  # no name that hides secrets by itself
    arguments = ["judge", "demo", "--lake", str(lake.storage.local_path()), "--model", "grader",
                 "--judge-key-variable", "OWN_JUDGE_SETTING"]  # fmt: skip
    said = []

    def reply(question: str, gold: str, answer: str) -> str:
        return f"key {KEY}" if question == "edit 3 is" else honest(question, gold, answer)

    refusals = [
        (401, {}, f"bad key {KEY}"), (403, {}, KEY), (400, {}, "x" * 290 + KEY), (302, {}, KEY)
    ]  # fmt: skip
    for refusal in refusals:
        with judge_server(refusals=[refusal] * 9) as server:
            found = CliRunner().invoke(app, [*arguments, "--judge", server.url])
            assert isinstance(found.exception, JudgeError)
            said.append(f"{found.output}{found.exception!r}{found.exc_info}")
    with judge_server(reply=reply, refusals=[(200, {}, "x" * 190 + KEY)]) as server:
        found = CliRunner().invoke(app, [*arguments, "--judge", server.url])
        assert found.exit_code == 0, found.output
        said.append(found.output)
        assert set(server.keys) == {f"Bearer {KEY}"}
    out, err = capfd.readouterr()
    text = "".join([*said, out, err, caplog.text, repr(Endpoint(url="u", model="m", key=KEY))])
    for part in (KEY, KEY[:8], KEY[-8:]):
        assert part not in text
        assert part.encode() not in everything_in(lake)
    replies = query("SELECT reply FROM free_answers WHERE edit_index = 3", lake).rows
    assert ("key ***",) in replies


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://x/v1", "expected the base URL"),
        ("localhost:8000", "expected the base URL"),
        ("http://host:port/v1", "expected the base URL"),
        ("http://[::1/v1", "expected the base URL"),
        (f"https://user:{KEY}@host/v1", "carries a user"),
        (f"https://host/v1?api_key={KEY}", "carries a user, a query"),
    ],
)
def test_a_url_that_cannot_be_or_carries_a_secret_is_refused(url: str, said: str) -> None:
    with pytest.raises(JudgeError, match=said) as refused:
        open_endpoint(url, "m", environment={})
    assert KEY not in str(refused.value)


def test_the_key_is_the_environments_alone() -> None:
    found = open_endpoint(
        "https://h/v1/chat/completions", "m", environment={"RLEDIT_JUDGE_KEY": KEY}
    )
    assert (found.url, found.key) == ("https://h/v1", KEY)
    assert open_endpoint("http://h/v1/", "m", environment={"OPENAI_API_KEY": KEY}).key == ""
    with pytest.raises(JudgeError, match="RLEDIT_JUDGE_KEY holds spaces") as refused:
        open_endpoint("http://h", "m", environment={"RLEDIT_JUDGE_KEY": f"{KEY}\nsecond"})
    assert KEY not in str(refused.value)


def test_a_grid_without_judged_answers_says_what_it_lacks(lake: Lake) -> None:
    lake.commit(cell())
    with judge_server() as server:
        with pytest.raises(JudgeError, match="name it in the grid's `protocols`"):
            judged(lake, server)
        with pytest.raises(JudgeError, match="did you mean 'demo'"):
            judge_grid(lake, "demos", Judge(Endpoint(url=server.url, model="m")))
        assert not server.requests


def test_another_judge_is_asked_for_itself_and_its_verdicts_take_the_place(lake: Lake) -> None:
    fill(lake)
    with judge_server() as server:
        first = judged(lake, server)
        other = Judge(Endpoint(url=server.url, model="other"), first_wait=0.01)
        second = judge_grid(lake, "demo", other)
    assert second.asked == first.asked
    (record,) = lake.manifest("demo")
    assert record.values["resolved"]["judge"]["model"] == "other"
    names = {json.loads(line)["model"] for name in lake.storage.list("judge_replies")
             for line in lake.storage.read_bytes(name).splitlines()}  # fmt: skip
    assert names == {"grader", "other"}
    assert os.environ.get("RLEDIT_JUDGE_KEY") is None
