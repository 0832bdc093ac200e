"""A source of edits that reads files: the same stream for the same split, length and seed.

The order of a split is a sort by the hash of (split, seed, edit), so that a longer draw continues
a shorter one, and no library's random generator can change a stream between versions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from rledit.datasets.cut import digest
from rledit.datasets.edits import JOINED, ReadReport, joined, read_edits
from rledit.datasets.errors import SHOWN_ROWS, DatasetError, RowError, RowErrors
from rledit.datasets.overlap import overlap, prompts
from rledit.datasets.pools import ALL, PoolFiles
from rledit.datasets.times import KEYS, in_order, steps
from rledit.records import SPLITS, Edit, Split

logger = logging.getLogger(__name__)

Order = Literal["shuffled", "file", "time"]
Given = str | Path | ReadReport | Sequence[str | Path]
"""A file, what `read_edits` made of one, or several files of which one follows on the other."""
OnOverlap = Literal["refuse", "drop"]


class FileEditSource:
    """Edits from files, in pools that share no prompt.

    A file given for a pool is that pool. The file given as `all` is cut into the pools that have
    none of their own; a cut keeps all edits of one prompt, and of one subject, in one pool.

    Args:
        train: File for training, or several; see `Given`.
        evaluation: File for evaluation.
        validation: File for tuning.
        all: File to be cut.
        format: Format name of the files that are paths, or ``"auto"``.
        strict: Refuse blank targets instead of skipping them.
        order: ``"shuffled"`` by seed; ``"file"``: as written, the same for every seed; or
            ``"time"``: by time step (see `rledit.datasets.times`), those of one step as written.
            Then a train pool of which no edit has a time keeps the order of its file.
        on_overlap: What to do with prompts that several files share: ``"refuse"``, or ``"drop"``
            them from train, and from validation and `all` where evaluation has them.
        shares: Share of the prompts of `all` for each pool without a file; by default in the ratio
            of 70 for train, 10 for validation and 20 for evaluation.
        name: Name of the dataset in results; the format of the evaluation file by default.

    Attributes:
        name: Name of the dataset.
        data_hash: sha256 over the files' hashes and all settings that shape the pools.
        formats: Names of the formats of the files that are edited.
        file_hashes: sha256 of each file's bytes, by what it was given for.
        unread: File → its keys with content that its format has no use for → rows that have them.
        dropped: Edits dropped because of shared prompts, by the file they are of.

    Raises:
        DatasetError: No file was given, pools share prompts, shares make no sense, or edits have
            no time step to be ordered by; besides, all errors of `read_edits`.
    """

    def __init__(
        self,
        *,
        train: Given | None = None,
        evaluation: Given | None = None,
        validation: Given | None = None,
        all: Given | None = None,
        format: str = "auto",
        strict: bool = False,
        order: Order = "shuffled",
        on_overlap: OnOverlap = "refuse",
        shares: Mapping[Split, float] | None = None,
        name: str | None = None,
    ) -> None:
        _check_choice("order", order, get_args(Order))
        _check_choice("on_overlap", on_overlap, get_args(OnOverlap))
        given = {"train": train, "validation": validation, "evaluation": evaluation, ALL: all}
        # What makes no sense is said before anything is read.
        self._files = PoolFiles([key for key, item in given.items() if item is not None], shares)
        reports = {
            key: _report(item, format, strict) for key, item in given.items() if item is not None
        }
        self.order: Order = order
        self.file_hashes = {key: report.data_hash for key, report in reports.items()}
        self.unread = {report.path: report.unread for report in reports.values() if report.unread}
        main = reports[_main_file(reports)]
        self.name = name or main.format
        self.formats = tuple(main.format.split(JOINED))
        self.dropped: dict[str, int] = {}
        self._read = {key: (Path(r.path).name, len(r.edits)) for key, r in reports.items()}
        self._pools = self._make_pools(reports, on_overlap)
        if order == "time":
            self._pools = {split: self._by_time(split) for split in SPLITS}
        self.data_hash = digest(
            {
                "files": {
                    self._files.hashed_as(key): [r.data_hash, r.format, *r.adapted]
                    for key, r in reports.items()
                },
                "on_overlap": on_overlap,
                **self._files.hashed,
                # Times may come from the names of files, which their hashes do not hold.
                **({"times": digest(self._times())} if order == "time" else {}),
            }
        )
        self._orders: dict[tuple[str, int], list[Edit]] = {}

    def origin(self, split: Split) -> str:
        """How a pool came about, for messages: ``2 of the 10 edits of x.json, which is ...``."""
        key = self._files.of(split)
        if key is None:
            return "no file is given for it"
        name, count = self._read[key]
        lost = self.dropped.get(key, 0)
        dropped = f", {lost} dropped because another file has their prompts" if lost else ""
        if key != ALL:
            taken = f"{count - lost} of the" if lost else "all"
            return f"{taken} {count} edits of {name}{dropped}"
        size = len(self._pools[split])
        return f"{size} of the {count} edits of {name}, {self._files.cutting}{dropped}"

    def steps(self, split: Split) -> list[str]:
        """The distinct time steps of a pool, in their order."""
        return steps(self._pools[split])

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
                f"{self.name}: cannot draw {n} edits from {split}, which holds {len(pool)} "
                f"({self.origin(split)}); shorten the stream or give more data "
                f"(pools: {self.sizes()})"
            )
        return self._ordered(split, seed)[:n]

    def _ordered(self, split: Split, seed: int) -> list[Edit]:
        if self.order != "shuffled":
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

    def _by_time(self, split: Split) -> list[Edit]:
        """A pool in the order of time."""
        pool = self._pools[split]
        found, without = in_order(pool)
        if not without:
            return found
        if split == "train" and not steps(pool):
            return pool
        places = [edit.source or edit.edit_id for edit in without]
        more = f" and {len(places) - SHOWN_ROWS:,} more" if len(places) > SHOWN_ROWS else ""
        raise DatasetError(
            f"order: time, and {len(without):,} of the {len(pool):,} edits of the {split} pool "
            f"({self.origin(split)}) have no time step: {', '.join(places[:SHOWN_ROWS])}{more}; "
            f"give every row a number or a date under {', '.join(KEYS)}, all of one kind, name "
            "files by their interval (…_20240201_20240220.json), or take order: file"
        )

    def _times(self) -> dict[str, list[list[str | None]]]:
        return {s: [[edit.edit_id, edit.time] for edit in self._pools[s]] for s in SPLITS}

    def _make_pools(
        self, reports: Mapping[str, ReadReport], on_overlap: OnOverlap
    ) -> dict[Split, list[Edit]]:
        if list(reports) == [ALL]:
            return self._files.cut(reports[ALL].edits)
        files: dict[str, list[Edit]] = {
            # Several files number their rows alike: what they are given for makes the ids unique.
            key: [
                replace(edit, edit_id=f"{self._files.hashed_as(key)}:{edit.edit_id}")
                for edit in report.edits
            ]
            for key, report in reports.items()
        }
        # Evaluation is never shortened, and validation only by evaluation.
        for weaker, stronger in (
            ("validation", "evaluation"),
            (ALL, "evaluation"),
            (ALL, "validation"),
            ("train", "evaluation"),
            ("train", "validation"),
            ("train", ALL),
        ):
            if weaker in files and stronger in files:
                files[weaker] = self._separate(files, weaker, stronger, on_overlap)
        cut = self._files.cut(files[ALL]) if ALL in files else {}
        return {split: files.get(split, cut.get(split, [])) for split in SPLITS}

    def _separate(
        self,
        pools: Mapping[str, list[Edit]],
        weaker: str,
        stronger: str,
        on_overlap: OnOverlap,
    ) -> list[Edit]:
        """The weaker file's edits without the prompts of the stronger one."""
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


def _report(given: Given, format: str, strict: bool) -> ReadReport:
    """What a pool's file or files give; rows that cannot be mapped are named for all of them."""
    if isinstance(given, ReadReport):
        return given
    reports: list[ReadReport] = []
    errors: list[RowError] = []
    for path in [given] if isinstance(given, str | Path) else given:
        try:
            reports.append(read_edits(path, format, strict))
        except RowErrors as error:
            errors += error.errors
    if errors:
        raise RowErrors(errors)
    return joined(reports)


def _main_file(reports: Mapping[str, ReadReport]) -> str:
    return next(key for key in ("evaluation", ALL, "train", "validation") if key in reports)


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} {value!r} is unknown; choose one of {', '.join(choices)}")
