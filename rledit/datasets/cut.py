"""Cut one set of edits into pools that share neither a prompt nor a subject."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate

from rledit.datasets.overlap import prompts
from rledit.records import Edit, Split


def cut(edits: Sequence[Edit], shares: Mapping[Split, float]) -> dict[Split, list[Edit]]:
    """Cut edits into pools at the shares, never through a prompt or a subject.

    Groups stand in the order of their hash; a group belongs to the pool its first prompt falls in.
    """
    groups = sorted(_groups(edits), key=lambda group: digest(min(prompts(group))))
    n_prompts, total = len(prompts(edits)), sum(shares.values())
    ends = [n_prompts * end / total for end in accumulate(shares.values())]
    pools: dict[Split, set[int]] = {split: set() for split in shares}
    passed = 0
    for group in groups:
        split = list(shares)[min(bisect_right(ends, passed), len(ends) - 1)]
        pools[split].update(id(edit) for edit in group)
        passed += len(prompts(group))
    return {s: [edit for edit in edits if id(edit) in members] for s, members in pools.items()}


def _groups(edits: Sequence[Edit]) -> list[list[Edit]]:
    """Edits tied by a shared prompt or a shared subject, directly or over others."""
    root: dict[tuple[str, str], tuple[str, str]] = {}

    def find(key: tuple[str, str]) -> tuple[str, str]:
        while root.setdefault(key, key) != key:
            root[key] = root[root[key]]  # halve the path, so that long chains stay cheap
            key = root[key]
        return key

    for edit in edits:
        prompt = find(("prompt", edit.prompt.strip()))
        if edit.subject:
            root[prompt] = find(("subject", edit.subject.strip()))
    members: dict[tuple[str, str], list[Edit]] = defaultdict(list)
    for edit in edits:
        members[find(("prompt", edit.prompt.strip()))].append(edit)
    return list(members.values())


def digest(value: object) -> str:
    """sha256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
