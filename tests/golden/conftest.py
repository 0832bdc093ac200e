"""Options and parametrisation of the golden tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from .judge import Judge
from .locate_judge import LocateJudge
from .real_judge import RealJudge
from .sets import GoldenSet, find_sets


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        default=os.environ.get("RLEDIT_GOLDEN"),
        help="golden vectors: one set or a parent of sets (default: $RLEDIT_GOLDEN)",
    )


@cache
def judge_of(golden: GoldenSet) -> Judge | LocateJudge | RealJudge:
    """The judge of a set, shared by its tests."""
    judges = {"hypernet": Judge, "locate": LocateJudge, "real": RealJudge}
    return judges[golden.kind](golden)


def directory(config: pytest.Config) -> Path | None:
    """Where the golden vectors are; the option exists only if this file was loaded early."""
    found = config.getoption("golden", default=None) or os.environ.get("RLEDIT_GOLDEN")
    return Path(found) if found else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_part" in metafunc.fixturenames:
        metafunc.parametrize("golden_part", _cases(metafunc.config, by_part=True))
    if "golden_judge" in metafunc.fixturenames:
        metafunc.parametrize("golden_judge", _cases(metafunc.config, by_part=False))


def _cases(config: pytest.Config, by_part: bool) -> list[object]:
    root = directory(config)
    if root is None:
        reason = "no golden vectors: give --golden DIR or set RLEDIT_GOLDEN"
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    try:
        sets = find_sets(root)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    cases: list[object] = []
    for golden in sets:
        name = golden.root.name
        if by_part:
            judge = judge_of(golden)
            cases += [pytest.param((judge, p), id=f"{name}-{p}") for p in judge.parts]
        else:
            cases.append(pytest.param(judge_of(golden), id=name))
    return cases


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Recordings were made on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    root = directory(terminalreporter.config)
    if root is None or judge_of.cache_info().currsize == 0:
        return
    for golden in find_sets(root):
        worst = judge_of(golden).ledger.worst
        if not worst:
            continue
        terminalreporter.section(f"{golden.root.name}: worst relative errors")
        for kind, (error, limit, where) in sorted(worst.items()):
            terminalreporter.write_line(f"{kind:32} {error:8.1e} of {limit:6.0e}  {where}")
