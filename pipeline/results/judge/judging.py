"""Has the free answers of a grid's finished cells judged, and puts the scores into their rows.

Only what no reply is known of is asked, and nothing before the judge has passed the gate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from pipeline.results.judge.endpoint import Endpoint, Judge, JudgeError
from pipeline.results.judge.gate import CASES, gate_problem
from pipeline.results.judge.prompt import PROMPT_VERSION, judge_prompt
from pipeline.results.judge.replies import AnswerToJudge, Replies, Reply, reply_key
from pipeline.results.judge.scores import (
    AGREEMENT,
    JUDGED,
    UNPARSABLE,
    Rows,
    agreement,
    asks_judge,
    counts,
    edit_scores,
    judged,
    rows_of,
    with_means,
    with_scores,
)
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellRecord
from pipeline.results.lake.schemas import DATA_TABLES, OPTIONAL_TABLES, TABLES

FREE = "free_answers"

Tell = Callable[[int, int], None]
"""Told how many questions of how many are answered."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What has been judged.

    Attributes:
        cells: Cells whose answers were judged.
        answers: Their answers.
        distinct: Different questions to the judge that these make.
        asked: Of them, those that were asked now.
        unparsable: Answers on which the reply says neither; they count in no mean.
        agreement: Percent of the answers on which judge and match say the same; None without any.
    """

    cells: int
    answers: int
    distinct: int
    asked: int
    unparsable: int
    agreement: float | None


def judge_grid(
    lake: Lake,
    grid: str,
    judge: Judge,
    parallel: int = 4,
    tell: Tell = lambda *_: None,
) -> Judged:
    """Judge the free answers of a grid's finished cells.

    Raises:
        JudgeError: There is nothing to judge, the judge does not pass the gate, or it cannot be
            asked. What it has said is kept: the same call goes on from there.
    """
    endpoint = judge.endpoint
    cells = [(record, _free_rows(lake, record)) for record in judged_records(lake, grid)]
    rows = [row for _, own in cells for row in own if asks_judge(row)]
    questions = dict.fromkeys(_to_judge(row) for row in rows)
    replies = Replies(lake.storage)
    new = [one for one in questions if replies.get(reply_key(endpoint, one)) is None]
    if new:
        pass_gate(judge, replies, parallel)
    _ask_all(judge, replies, new, parallel, tell)
    replies.gather()
    found: list[dict[str, Any]] = []
    for record, own in cells:
        found += _commit(lake, record, own, replies, endpoint)
    said = [row for row in found if row["judge"] is not None]
    return Judged(
        cells=len(cells),
        answers=len(said),
        distinct=len(questions),
        asked=len(new),
        unparsable=sum(row["verdict"] is None for row in said),
        agreement=agreement(said),
    )


def judged_records(lake: Lake, grid: str) -> list[CellRecord]:
    """The finished cells that hold the free answers of a grid.

    Raises:
        JudgeError: There are none; says why.
    """
    shown = lake.manifest(grid) if lake.exists() else []
    if not shown:
        grids = lake.grids() if lake.exists() else []
        near = get_close_matches(grid, grids, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise JudgeError(
            f"no cells of grid {grid!r} in {lake.storage}{hint} Grids there: "
            f"{', '.join(grids) or 'none yet'}"
        )
    keys = {
        record.address.cell_key if record.asked is None else record.asked.within
        for record in shown
        if record.done and JUDGED in record.values["protocols"]
    }
    found = {r.address.cell_key: r for r in lake.manifest() if r.asked is None and r.done}
    records = [found[key] for key in sorted(keys) if FREE in found[key].files]
    if not records:
        states = Counter(record.status for record in shown)
        told = ", ".join(f"{n} {status}" for status, n in states.items())
        raise JudgeError(
            f"grid {grid!r} has no answers for a judge: its cells ({told}) have none under the "
            f"protocol {JUDGED}; name it in the grid's `protocols` and run the grid"
        )
    return records


def waiting(records: Iterable[CellRecord]) -> int:
    """Cells among some records that ask for a judge, and whose free answers none has judged yet."""
    return sum(
        record.done
        and JUDGED in record.values["protocols"]
        and FREE in record.files
        and "judge" not in record.values["resolved"]
        for record in records
    )


def pass_gate(judge: Judge, replies: Replies, parallel: int = 4) -> None:
    """Ask a judge about answers whose verdict is beyond doubt, unless it has passed here before.

    Raises:
        JudgeError: It judges too many of them wrongly.
    """
    keys = {case.asked: reply_key(judge.endpoint, case.asked, gate=True) for case in CASES}
    new = [asked for asked, key in keys.items() if replies.get(key) is None]
    _ask_all(judge, replies, new, parallel, gate=True)
    said = {asked: _known(replies, key) for asked, key in keys.items()}
    problem = gate_problem(
        {asked: reply.reply for asked, reply in said.items()},
        {asked: reply.verdict for asked, reply in said.items()},
    )
    if problem is not None:
        replies.forget(keys.values())
        raise JudgeError(
            f"the judge {judge.endpoint} is not fit to judge: of {len(CASES)} answers whose "
            f"verdict is beyond doubt it has wrong: {problem}. Nothing was judged; take another "
            "model, and see that it replies with A or B alone"
        )


def _ask_all(
    judge: Judge,
    replies: Replies,
    new: Sequence[AnswerToJudge],
    parallel: int,
    tell: Tell = lambda *_: None,
    *,
    gate: bool = False,
) -> None:
    """Ask about some answers, several at a time; every reply is kept at once.

    Raises:
        JudgeError: The first that fails; what is under way then is waited for and kept.
    """

    errors: list[Exception] = []

    def ask(asked: AnswerToJudge) -> None:
        try:
            fetch(asked)
        except Exception as error:
            # At once: this thread would take the next question before the others are called off.
            errors.append(error)
            judge.stop()
            raise

    def fetch(asked: AnswerToJudge) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        reply = Reply(
            key=reply_key(judge.endpoint, asked, gate=gate),
            prompt_version=PROMPT_VERSION,
            model=judge.endpoint.model,
            url=judge.endpoint.url,
            question=asked.question,
            gold=asked.gold,
            answer=asked.answer,
            reply=judge.ask(judge_prompt(asked.question, asked.gold, asked.answer)),
            asked_at=now,
        )
        replies.keep(reply)

    if not new:
        return
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="judge")
    try:
        left = {pool.submit(ask, one) for one in new}
        while left:
            _, left = wait(left, timeout=1.0, return_when=FIRST_EXCEPTION)
            if errors:
                raise _with_state(errors[0], len(new) - len(left), len(new))
            tell(len(new) - len(left), len(new))
    except BaseException:
        judge.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _with_state(error: Exception, ended: int, total: int) -> Exception:
    """An error of a judge that also says how the command goes on; any other as it is."""
    if not isinstance(error, JudgeError):
        return error
    return JudgeError(
        f"{error}; {ended:,} of {total:,} requests had ended, and every reply is kept: the same "
        "command goes on from there"
    )


def _commit(
    lake: Lake, record: CellRecord, free: Rows, replies: Replies, endpoint: Endpoint
) -> Rows:
    """Put the verdicts on a cell's answers into its rows; returns its free answers."""
    used: list[Reply] = []

    def reply_to(row: Mapping[str, Any]) -> Reply:
        used.append(_known(replies, reply_key(endpoint, _to_judge(row))))
        return used[-1]

    rows = judged(free, reply_to)
    said = [row for row in rows if row["judge"] is not None]
    about = {
        "model": endpoint.model,
        "urls": sorted({reply.url for reply in used}),
        "prompt_version": PROMPT_VERSION,
        "from": min((reply.asked_at for reply in used), default=None),
        "to": max((reply.asked_at for reply in used), default=None),
        "answers": len(said),
        "unparsable": sum(row["verdict"] is None for row in said),
        "agreement": agreement(said),
    }
    if record.values["resolved"].get("judge") == about and rows == free:
        return rows
    result = lake.result(record, (*DATA_TABLES, *OPTIONAL_TABLES))
    scores = edit_scores(rows)
    steps = [r for r in rows_of(_columns(result.steps)) if r["metric"] not in _OURS]
    lake.commit(
        replace(
            result,
            resolved={**result.resolved, "judge": about},
            edits=with_scores(rows_of(_columns(result.edits)), scores),
            scores=with_means(rows_of(_columns(result.scores)), rows, scores),
            steps=[*steps, *counts(rows)],
            free_answers=rows,
        )
    )
    return rows


_OURS = (UNPARSABLE, AGREEMENT)


def _columns(table: Any) -> Mapping[str, Sequence[Any]]:
    """A table of `Lake.result`, which gives columns."""
    columns: Mapping[str, Sequence[Any]] = table
    return columns


def _free_rows(lake: Lake, record: CellRecord) -> Rows:
    columns = lake.columns(FREE, record)
    return rows_of({name: columns[name] for name in TABLES[FREE]})


def _to_judge(row: Mapping[str, Any]) -> AnswerToJudge:
    return AnswerToJudge(question=row["prompt"], gold=row["target"], answer=row["answer"])


def _known(replies: Replies, key: str) -> Reply:
    reply = replies.get(key)
    if reply is None:
        raise JudgeError(f"the judge's reply {key} is not in the lake any more; judge again")
    return reply
