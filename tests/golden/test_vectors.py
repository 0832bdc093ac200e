"""Everything the authors' releases computed, recomputed in official mode and compared."""

from __future__ import annotations

import pytest

from .judge import Judge
from .locate_judge import LocateJudge
from .real_judge import RealJudge

AnyJudge = Judge | LocateJudge | RealJudge


def test_part(golden_part: tuple[AnyJudge, str]) -> None:
    judge, part = golden_part
    if reason := judge.reason_to_skip(part):
        pytest.skip(reason)
    failures = judge.failures(part)
    assert not failures, "\n".join([f"{len(failures)} values differ", *failures])


def test_nothing_is_left_over(golden_judge: AnyJudge) -> None:
    problems = golden_judge.coverage()
    assert not problems, "\n".join([f"{len(problems)} values not judged", *problems])
