"""Collections of garbage see what a task made, and not what was there before it."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from pipeline.run import heap


class _Cycle:
    """What only a collection of garbage ends."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In which nothing is frozen yet; what pytest froze is again at the end."""
    monkeypatch.setattr(heap, "_frozen", False)
    gc.unfreeze()
    yield
    gc.freeze()


def test_what_was_there_is_not_looked_through() -> None:
    kept = _Cycle()
    heap.freeze()
    assert all(found is not kept for found in gc.get_objects())
    later = _Cycle()
    assert any(found is later for found in gc.get_objects())


def test_what_a_task_left_is_given_back_before_the_next_freeze() -> None:
    heap.freeze()
    left = weakref.ref(_Cycle())
    heap.freeze()
    assert left() is None


def test_the_first_freeze_of_a_process_collects_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That would look through everything that was imported, half a second's work."""
    monkeypatch.setattr(gc, "collect", lambda: pytest.fail("collected"))
    heap.freeze()


def test_what_was_frozen_is_given_back_with_all_the_rest() -> None:
    frozen = weakref.ref(_Cycle())
    heap.freeze()
    gc.collect()
    assert frozen() is not None
    heap.collect_all()
    assert frozen() is None


def test_what_others_have_frozen_is_theirs() -> None:
    theirs = weakref.ref(_Cycle())
    gc.freeze()
    made = _Cycle()
    heap.freeze()
    assert any(found is made for found in gc.get_objects())
    heap.collect_all()
    assert theirs() is not None


def test_a_process_that_ends_says_nothing_of_leaks() -> None:
    """DuckDB's objects are counted when the interpreter ends, and frozen ones would stay."""
    program = (
        "import duckdb; from pipeline.run.heap import freeze; duckdb.sql('select 1'); freeze()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
