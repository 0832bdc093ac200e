"""Walks a pool of edits in epochs: nothing is seen twice before everything has been seen once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

from rledit.records import Edit


def walk(pool: Callable[[int], Sequence[Edit]], n: int) -> Iterator[list[Edit]]:
    """Trajectory after trajectory of `n` edits, without end.

    What is left of an epoch and does not fill a trajectory is filled up from the next one, with
    facts that are not in it yet, as far as there are such.

    Args:
        pool: Epoch, counted from 0 → the whole pool in that epoch's order.
        n: Edits of a trajectory.

    Raises:
        ValueError: The pool holds fewer than `n` edits.
    """
    left: list[Edit] = []
    for epoch in count():
        fresh = list(pool(epoch))
        if len(fresh) < n:
            raise ValueError(
                f"a trajectory of {n} edits was asked of a pool of {len(fresh)}; shorten the "
                "trajectory (trajectory_batches), or enlarge the pool"
            )
        if left:
            known = {name for edit in left for name in _names(edit)}
            new = [known.isdisjoint(_names(edit)) for edit in fresh]
            # A stable sort: those of new facts first, all else as it was.
            order = sorted(range(len(fresh)), key=lambda i: not new[i])
            head = set(order[: n - len(left)])
            yield left + [fresh[i] for i in order[: n - len(left)]]
            fresh = [edit for i, edit in enumerate(fresh) if i not in head]
        whole = len(fresh) - len(fresh) % n
        for first in range(0, whole, n):
            yield fresh[first : first + n]
        left = fresh[whole:]


def _names(edit: Edit) -> set[tuple[str, ...]]:
    """What tells an edit's fact: its row, and its subject with the relation where data has both."""
    names: set[tuple[str, ...]] = {(edit.edit_id,)}
    if edit.subject is not None and edit.relation is not None:
        names.add((edit.subject, edit.relation))
    return names
