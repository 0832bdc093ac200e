"""Estimate of what a judge is asked for a grid: calls and tokens, at most.

Equal answers to one question are asked about once, and what was asked before is not asked again:
how many these are is known when the answers are there.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plan.cells import Cell
from pipeline.plan.estimate.workload import CHARACTERS_PER_TOKEN
from pipeline.results.judge.endpoint import MAX_TOKENS
from pipeline.results.judge.gate import CASES
from pipeline.results.judge.prompt import judge_prompt
from rledit.free_answers import MOST_TOKENS

_UNREAD = ("a target", ("a question of usual length about its subject",) * 2)


def judge_lines(cells: Sequence[Cell], unreadable: Sequence[Cell] = ()) -> list[str]:
    """What the answers of some cells cost to judge, as a line; none where none are judged.

    Args:
        cells: Cells that are to run.
        unreadable: Those among them whose data is not here.
    """
    judged = [cell for cell in cells if cell.judged]
    if not judged:
        return []
    calls = len(CASES)
    tokens = sum(_tokens(c.asked.question, c.asked.gold, c.asked.answer) for c in CASES)
    for cell in judged:
        own_calls, own_tokens = _of(cell, cell not in unreadable)
        calls, tokens = calls + own_calls, tokens + own_tokens
    return [
        f"judge: at most {calls:,} calls, {tokens:,.0f} tokens in and {MAX_TOKENS * calls:,} out, "
        f"for {len(judged)} cells; nothing is sent without --judge"
    ]


def _of(cell: Cell, readable: bool) -> tuple[int, float]:
    """Calls and tokens for one cell: before the first edit, and at every point."""
    asked: list[tuple[str, tuple[str, ...]]] = [_UNREAD] * cell.n_edits
    if readable:
        edits = cell.source().draw(cell.dataset.split, cell.n_edits, seed=cell.seed)
        most = None if cell.probes == "all" else 1
        asked = [(edit.target, (edit.prompt, *edit.rephrases[:most])) for edit in edits]
    each = [
        (len(prompts), sum(_tokens(prompt, target) + MOST_TOKENS for prompt in prompts))
        for target, prompts in asked
    ]
    ends = (cell.n_edits, *(point * cell.stream.batch_size for point in cell.points))
    scored = [each[place] for end in ends for place in cell.scored_places if place < end]
    return sum(n for n, _ in scored), sum(tokens for _, tokens in scored)


def _tokens(question: str, gold: str, answer: str = "") -> float:
    """Tokens of a question to the judge."""
    return len(judge_prompt(question, gold, answer)) / CHARACTERS_PER_TOKEN
