"""Trajectories in epochs: every edit once before any comes twice, and no fact twice in one."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest

from rledit.epochs import walk
from rledit.records import Edit


def pool(n: int, seed: int) -> list[Edit]:
    """n facts, in an order and with targets of the epoch."""
    facts = [
        Edit(edit_id=f"{i}={seed}", prompt=f"p{i}", target=f"t{seed}", subject=f"s{i}",
             relation="r")
        for i in range(n)
    ]  # fmt: skip
    return random.Random(seed).sample(facts, n)


@pytest.mark.parametrize(("n", "size"), [(12, 4), (10, 4), (7, 5), (5, 5), (9, 8)])
def test_nothing_comes_twice_before_all_have_come_once(n: int, size: int) -> None:
    found = list(islice(walk(lambda epoch: pool(n, epoch), size), 40))
    assert all(len({edit.subject for edit in edits}) == size for edits in found)
    seen = [edit.subject for edits in found for edit in edits]
    for epochs in range(1, len(seen) // n):
        assert set(Counter(seen[: epochs * n]).values()) == {epochs}


def test_epochs_differ_and_repeat_for_the_same_pool() -> None:
    one, other = (list(islice(walk(lambda e: pool(12, e), 4), 12)) for _ in range(2))
    assert one == other
    orders = [[e.subject for edits in one[i : i + 3] for e in edits] for i in (0, 3, 6)]
    assert len({tuple(order) for order in orders}) == 3


def test_rows_without_relations_are_known_by_their_row() -> None:
    rows = [Edit(edit_id=str(i), prompt="p", target="t", subject="same") for i in range(5)]
    found = list(islice(walk(lambda epoch: rows, 3), 5))
    assert [[e.edit_id for e in edits] for edits in found] == [
        ["0", "1", "2"], ["3", "4", "0"], ["1", "2", "3"], ["4", "0", "1"], ["2", "3", "4"],
    ]  # fmt: skip


def test_a_pool_that_is_too_small_says_so() -> None:
    with pytest.raises(ValueError, match="a trajectory of 9 edits was asked of a pool of 8"):
        next(walk(lambda epoch: pool(8, epoch), 9))
