"""Shares prompts that several processes lack at one moment out among them, length by length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from rledit.prefix_store import PrefixStore
from rledit.tokenization import Sample

POLL_SECONDS = 0.5


def shared_out(
    missing: Sequence[Sample],
    store: PrefixStore,
    claim: Callable[[int], AbstractContextManager[bool]],
    record: Callable[[Sequence[Sample]], Iterator[int]],
    n_bytes: Callable[[Sequence[Sample]], int],
) -> Iterator[int]:
    """Record prompts of the lengths that nobody else is recording, and wait for the others.

    Where the store has no more room, it ends: what is lacking is recorded when it is needed.

    Args:
        missing: What the store lacks, each input once.
        store: Where the others look as well.
        claim: The right to record prompts of a length, see `PrefixStore`.
        record: Puts prefixes of prompts into the store; yields how many are done.
        n_bytes: What the prefixes of prompts take.

    Yields:
        How many of the missing ones are there, now and then.
    """
    left: dict[int, list[Sample]] = {}
    for sample in missing:
        left.setdefault(len(sample), []).append(sample)
    done = 0
    while left:
        taken = False
        for length in sorted(left):
            with claim(length) as mine:
                if not mine:
                    continue
                store.refresh()
                own = store.missing(left[length])
                if own and n_bytes(own) > store.room:
                    return
                done += len(left[length]) - len(own)
                yield done
                for recorded in record(own):
                    yield done + recorded
                done += len(own)
                store.flush()
            del left[length]
            taken = True
        if not taken:
            if not store.room:
                return
            yield done
            time.sleep(POLL_SECONDS)
