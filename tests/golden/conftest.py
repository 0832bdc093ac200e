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
from .sets import RECORDED, GoldenSet, find_sets


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        default=os.environ.get("RLEDIT_GOLDEN"),
        help="full golden vectors beside the project's own: one set or a parent of sets "
        "(default: $RLEDIT_GOLDEN)",
    )


@cache
def judge_of(golden: GoldenSet) -> Judge | LocateJudge | RealJudge:
    """The judge of a set, shared by its tests."""
    judges = {"hypernet": Judge, "locate": LocateJudge, "real": RealJudge}
    return judges[golden.kind](golden)


def sets_of(config: pytest.Config) -> list[tuple[str, GoldenSet]]:
    """The project's own sets, then those given, by a name of each.

    The option exists only if this file was loaded early.

    Raises:
        ValueError: A directory was given that holds no set.
    """
    found = [(f"recorded-{golden.root.name}", golden) for golden in find_sets(RECORDED)]
    given = config.getoption("golden", default=None) or os.environ.get("RLEDIT_GOLDEN")
    if given:
        own = {golden.root.resolve() for _, golden in found}
        others = [g for g in find_sets(Path(given)) if g.root.resolve() not in own]
        found += [(golden.root.name, golden) for golden in others]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_part" in metafunc.fixturenames:
        metafunc.parametrize("golden_part", _cases(metafunc.config, by_part=True))
    if "golden_judge" in metafunc.fixturenames:
        metafunc.parametrize("golden_judge", _cases(metafunc.config, by_part=False))


def _cases(config: pytest.Config, by_part: bool) -> list[object]:
    try:
        sets = sets_of(config)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    cases: list[object] = []
    for name, golden in sets:
        judge = judge_of(golden)
        # A whole run on a model of 135 M parameters takes minutes; of the others, those of the
        # project are enough for what is run all day.
        marks = [pytest.mark.slow] if isinstance(judge, RealJudge) else []
        marks += [] if golden.root.is_relative_to(RECORDED) else [pytest.mark.long]
        if by_part:
            for part in judge.parts:
                cases.append(pytest.param((judge, part), id=f"{name}-{part}", marks=marks))
        else:
            cases.append(pytest.param(judge, id=name, marks=marks))
    return cases


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Recordings were made on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if judge_of.cache_info().currsize == 0:
        return
    for name, golden in sets_of(terminalreporter.config):
        worst = judge_of(golden).ledger.worst
        if not worst:
            continue
        terminalreporter.section(f"{name}: worst relative errors")
        for kind, (error, limit, where) in sorted(worst.items()):
            terminalreporter.write_line(f"{kind:32} {error:8.1e} of {limit:6.0e}  {where}")
