"""A source of edits that reads files: the same stream for the same split, length and seed.

The order of a split is a sort by the hash of (split, seed, edit), so that a longer draw continues
a shorter one, and no library's random generator can change a stream between versions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from rledit.datasets.cut import cut, digest
from rledit.datasets.errors import DatasetError
from rledit.datasets.overlap import overlap, prompts
from rledit.datasets.read import ReadReport, read_edits
from rledit.records import Edit, Split

logger = logging.getLogger(__name__)

Order = Literal["shuffled", "file"]
OnOverlap = Literal["refuse", "drop"]

SPLITS: tuple[Split, ...] = get_args(Split)
DEFAULT_SHARES: Mapping[Split, float] = {
    "train": 0.7,
    "validation": 0.1,
    "evaluation": 0.2,
}


class FileEditSource:
    """Edits from files, in pools that share no prompt.

    One file is cut into all pools; a missing validation pool is cut from train in the ratio of
    their shares. A cut keeps all edits of one prompt, and of one subject, in one pool.

    Args:
        train: File (or what `read_edits` made of one) for training.
        evaluation: File for evaluation.
        validation: File for tuning.
        format: Format name of the files that are paths, or ``"auto"``.
        strict: Refuse blank targets instead of skipping them.
        order: ``"shuffled"`` by seed, or ``"file"``: as written, the same for every seed.
        on_overlap: What to do with prompts that several files share: ``"refuse"``, or ``"drop"``
            them from train, and from validation where evaluation has them.
        shares: Share of the prompts per pool, where a file is cut. Not used for a pool with its
            own file.
        name: Name of the dataset in results; the format of the evaluation file by default.

    Attributes:
        name: Name of the dataset.
        data_hash: sha256 over the files' hashes and all settings that shape the pools.
        file_hashes: sha256 of each file's bytes, by the split it was given for.
        unread: File → its keys with content that its format has no use for → rows that have them.
        dropped: Edits dropped because of shared prompts, by pool.

    Raises:
        DatasetError: No file was given, pools share prompts, or shares make no sense; besides,
            all errors of `read_edits`.
    """

    def __init__(
        self,
        *,
        train: str | Path | ReadReport | None = None,
        evaluation: str | Path | ReadReport | None = None,
        validation: str | Path | ReadReport | None = None,
        format: str = "auto",
        strict: bool = False,
        order: Order = "shuffled",
        on_overlap: OnOverlap = "refuse",
        shares: Mapping[Split, float] = DEFAULT_SHARES,
        name: str | None = None,
    ) -> None:
        _check_choice("order", order, get_args(Order))
        _check_choice("on_overlap", on_overlap, get_args(OnOverlap))
        _check_shares(shares)
        given = {"train": train, "validation": validation, "evaluation": evaluation}
        reports = {
            split: item if isinstance(item, ReadReport) else read_edits(item, format, strict)
            for split, item in given.items()
            if item is not None
        }
        if not reports:
            raise DatasetError("no data file given; set train, evaluation or validation")
        self.order: Order = order
        self.file_hashes = {split: report.data_hash for split, report in reports.items()}
        self.unread = {report.path: report.unread for report in reports.values() if report.unread}
        self.name = name or reports[_main_split(reports)].format
        self.dropped: dict[str, int] = {}
        self._pools = self._make_pools(reports, shares, on_overlap)
        self.data_hash = digest(
            {
                "files": {s: [r.data_hash, r.format, *r.adapted] for s, r in reports.items()},
                "shares": {split: shares.get(split, 0.0) for split in SPLITS},
                "on_overlap": on_overlap,
            }
        )
        self._orders: dict[tuple[str, int], list[Edit]] = {}

    def sizes(self) -> dict[str, int]:
        """Number of edits per pool."""
        return {split: len(pool) for split, pool in self._pools.items()}

    def draw(self, split: Split, n: int, seed: int) -> list[Edit]:
        """Draw a stream; a shorter draw of the same split and seed is its beginning.

        Raises:
            ValueError: The split is unknown, `n` is negative, or the pool holds fewer edits.
        """
        _check_choice("split", split, SPLITS)
        pool = self._pools[split]
        if not 0 <= n <= len(pool):
            raise ValueError(
                f"{self.name}: cannot draw {n} edits from {split}, which holds {len(pool)}; "
                f"shorten the stream or give more data (pools: {self.sizes()})"
            )
        return self._ordered(split, seed)[:n]

    def _ordered(self, split: Split, seed: int) -> list[Edit]:
        if self.order == "file":
            return self._pools[split]
        if (split, seed) not in self._orders:
            # One order per split is kept: streams ask for many lengths of one seed, while old
            # seeds of a large file would only fill the memory.
            self._orders = {key: edits for key, edits in self._orders.items() if key[0] != split}
            self._orders[split, seed] = sorted(
                self._pools[split],
                key=lambda edit: digest([split, seed, edit.edit_id]),
            )
        return self._orders[split, seed]

    def _make_pools(
        self,
        reports: Mapping[str, ReadReport],
        shares: Mapping[Split, float],
        on_overlap: OnOverlap,
    ) -> dict[Split, list[Edit]]:
        if len(reports) == 1:
            (report,) = reports.values()
            return cut(report.edits, {split: shares.get(split, 0.0) for split in SPLITS})
        pools: dict[Split, list[Edit]] = {
            # Several files number their rows alike: the split makes the ids unique.
            split: [
                replace(edit, edit_id=f"{split}:{edit.edit_id}") for edit in reports[split].edits
            ]
            for split in SPLITS
            if split in reports
        }
        # Evaluation is never shortened, and validation only by evaluation.
        for weaker, stronger in (
            ("validation", "evaluation"),
            ("train", "evaluation"),
            ("train", "validation"),
        ):
            if weaker in pools and stronger in pools:
                pools[weaker] = self._separate(pools, weaker, stronger, on_overlap)
        if "validation" not in pools:
            wanted: dict[Split, float] = {
                "train": shares.get("train", 0.0),
                "validation": shares.get("validation", 0.0),
            }
            pools |= cut(pools["train"], wanted) if sum(wanted.values()) else {}
        return {split: pools.get(split, []) for split in SPLITS}

    def _separate(
        self,
        pools: Mapping[Split, list[Edit]],
        weaker: Split,
        stronger: Split,
        on_overlap: OnOverlap,
    ) -> list[Edit]:
        """The weaker pool without the prompts of the stronger one."""
        shared = prompts(pools[weaker]) & prompts(pools[stronger])
        if not shared:
            return pools[weaker]
        if on_overlap == "refuse":
            found = overlap(pools[weaker], pools[stronger])
            raise DatasetError(
                f"{weaker} and {stronger} share {found.prompts} prompts ({found.facts} with the "
                f"same target), e.g. {min(shared)!r}; give disjoint files, or set "
                f"on_overlap='drop' to take them out of {weaker}"
            )
        kept = [edit for edit in pools[weaker] if edit.prompt.strip() not in shared]
        count = len(pools[weaker]) - len(kept)
        self.dropped[weaker] = self.dropped.get(weaker, 0) + count
        logger.warning("dropped %d edits of %s whose prompts %s has", count, weaker, stronger)
        return kept


def _main_split(reports: Mapping[str, ReadReport]) -> str:
    return next(s for s in ("evaluation", "train", "validation") if s in reports)


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} {value!r} is unknown; choose one of {', '.join(choices)}")


def _check_shares(shares: Mapping[Split, float]) -> None:
    unknown = set(shares) - set(SPLITS)
    if unknown or any(share < 0 for share in shares.values()) or sum(shares.values()) <= 0:
        raise DatasetError(
            f"shares {dict(shares)} make no sense; give non-negative numbers for "
            f"{', '.join(SPLITS)}, not all zero"
        )
