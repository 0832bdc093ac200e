"""Pools of a dataset: each from a file of its own, or as a share of a file that is cut."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from rledit.datasets.cut import cut
from rledit.datasets.errors import DatasetError
from rledit.records import SPLITS, Edit, Split

ALL: Literal["all"] = "all"
"""What a file is given for that is cut into the pools which have none of their own."""
DEFAULT_SHARES: Mapping[Split, float] = {"train": 0.7, "validation": 0.1, "evaluation": 0.2}


class PoolFiles:
    """The files of a dataset by the pool they are given for, one of which may be cut.

    Args:
        given: Names of pools, and `ALL`.
        shares: Share of the prompts of `ALL` by pool; None: `DEFAULT_SHARES`.

    Raises:
        DatasetError: There is no file, nothing to cut or nothing to cut it into, or shares are
            negative, all zero, or of a pool that has a file.
    """

    def __init__(self, given: Collection[str], shares: Mapping[Split, float] | None = None) -> None:
        if not given:
            raise DatasetError("no data file given; set train, evaluation or validation, or all")
        self._given = frozenset(given)
        self._shares = shares
        free: list[Split] = [split for split in SPLITS if split not in given]
        self._free = free if ALL in given else []
        self._check(shares, free)
        wanted: Mapping[Split, float] = DEFAULT_SHARES if shares is None else shares
        self._cut = {split: wanted.get(split, 0.0) for split in self._free}

    def of(self, split: Split) -> str | None:
        """What the pool's file is given for; None where it has none."""
        if split in self._given:
            return split
        return ALL if self._cut.get(split) else None

    def cut(self, edits: Sequence[Edit]) -> dict[Split, list[Edit]]:
        """Cut the edits of `ALL` into the pools that have no file."""
        found = cut(edits, self._cut)
        return {split: found.get(split, []) for split in SPLITS}

    @property
    def cutting(self) -> str:
        """How the file given as `ALL` is cut, for messages."""
        parts = {split: share for split, share in self._cut.items() if share}
        if len(parts) == 1:
            return f"which is given as `{ALL}` and all goes there"
        total = sum(parts.values())
        numbers = "/".join(f"{100 * share / total:.3g}" for share in parts.values())
        return f"which is given as `{ALL}` and cut into {'/'.join(parts)} {numbers}"

    def hashed_as(self, key: str) -> str:
        """The name of a file in hashes and in the ids of its edits.

        Files were cut before they could be given as `ALL`: what comes to the same pools keeps its
        hash, and so results stay valid.
        """
        if key != ALL:
            return key
        if self._given == {ALL}:
            return "evaluation"
        return "train" if self._given in _ONCE_TRAIN else ALL

    @property
    def hashed(self) -> dict[str, Any]:
        """What else shapes the pools, as a part of the hash."""
        shares: Mapping[Split, float] = DEFAULT_SHARES if self._shares is None else self._shares
        once_cut = len(self._given) == 1 or self._given == {"train", "evaluation"}
        whole = {"whole": True} if once_cut and ALL not in self._given else {}
        return {"shares": {split: shares.get(split, 0.0) for split in SPLITS}, **whole}

    def _check(self, shares: Mapping[Split, float] | None, free: Sequence[Split]) -> None:
        if ALL in self._given and not free:
            raise DatasetError(
                f"every pool has a file, so that nothing of `{ALL}` would be used; leave it out"
            )
        if shares is None:
            return
        if ALL not in self._given:
            raise DatasetError(
                f"shares say how the file given as `{ALL}` is cut, and there is none; a file given "
                "for a pool is that pool"
            )
        if (
            set(shares) - set(free)
            or min(shares.values(), default=0) < 0
            or not any(shares.values())
        ):
            raise DatasetError(
                f"shares {dict(shares)} make no sense; give non-negative numbers for "
                f"{', '.join(free)}, not all zero"
            )


_ONCE_TRAIN = ({ALL, "evaluation"}, {ALL, "validation", "evaluation"})
