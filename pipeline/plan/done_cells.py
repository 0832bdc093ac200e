"""Decides which cells of a grid are done, and which are contained in others and need no run.

A cell is done where the lake has whole rows of its key (`Lake.rows` compares the shards with the
manifest), whichever grid has run it. It is contained in another cell where that does the same
editing and is scored by at least as much (see `contains`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.inputs.content_hashes import fingerprint
from pipeline.plan.cell_keys import address_of, identity_of, key_of
from pipeline.plan.cells import Cell
from pipeline.plan.checks import skip_reason
from pipeline.plan.versions import code_version
from pipeline.results.lake.contained import OF_ALL_EDITS, ContainedCell, measured_of
from pipeline.results.lake.key_versions import without_labels
from pipeline.results.lake.records import CellRecord
from rledit.editors import editor_class
from rledit.stream import checkpoints

_SCORING = ("protocols", "measurements", "checkpoints", "also_after", "stream")
"""What a cell may have more of than another one that it contains; the rest of both is equal."""


@dataclass(frozen=True, kw_only=True)
class Containing:
    """The cell that has another one's rows, or will have them.

    Attributes:
        key: Its key.
        name: The cell for people, with its grid.
        done: Whether it has run.
    """

    key: str
    name: str
    done: bool


@dataclass(frozen=True, kw_only=True)
class DoneCells:
    """What the lake has of a grid's cells.

    Attributes:
        done: Keys of cells with rows, of their own or in another cell.
        failed: Reasons of those that failed before, by key; they are run again.
        other_code: Version of the code by key, of cells whose rows other code than this made.
        contained: The cells that another one answers for, by key.
    """

    done: frozenset[str]
    failed: dict[str, str]
    other_code: dict[str, str]
    contained: dict[str, Containing] = field(default_factory=dict)


def find_done(
    cells: Sequence[Cell],
    records: Iterable[CellRecord],
    rerun_other_code: bool = False,
    leaving: Iterable[str] = (),
    share_prefixes: bool = False,
) -> DoneCells:
    """Look up a grid's cells in what a lake shows.

    Args:
        cells: The cells.
        records: Of the lake, as `Lake.shown` gives them.
        rerun_other_code: Count finished cells that another version of the code made as not done,
            and let none of them answer for others.
        leaving: Keys of finished cells whose rows are about to be dropped.
        share_prefixes: Let longer streams answer for shorter ones, where the editor allows it.
    """
    by_key: dict[str, CellRecord] = {record.address.cell_key: record for record in records}
    asked = {key_of(cell) for cell in cells}
    known = {key: record for key, record in by_key.items() if key in asked}
    other_code = {
        key: str(record.values["code_version"])
        for key, record in known.items()
        if record.done and record.values["code_version"] != code_version()
    }
    gone = {*leaving, *(other_code if rerun_other_code else ())}
    done = {key for key, record in known.items() if record.done} - gone
    left = [
        r
        for r in by_key.values()
        if r.done
        and r.address.cell_key not in gone
        and not (rerun_other_code and r.values["code_version"] != code_version())
    ]
    missing = [cell for cell in cells if key_of(cell) not in done]
    contained = _contained(missing, left, share_prefixes)
    return DoneCells(
        done=frozenset(done | {key for key, found in contained.items() if found.done}),
        failed={
            key: record.reason or record.status for key, record in known.items() if not record.done
        },
        other_code=other_code,
        contained=contained,
    )


def _contained(
    missing: Sequence[Cell], done: Iterable[CellRecord], share_prefixes: bool
) -> dict[str, Containing]:
    """Which missing cells are contained in a finished one, or in another missing one."""
    able = [cell for cell in {key_of(c): c for c in missing}.values() if skip_reason(cell) is None]
    wanted = {_editing(identity_of(cell)) for cell in able}
    whole: dict[str, list[tuple[Containing, Mapping[str, Any]]]] = {}
    for record in done:
        known = without_labels(record.values["identity"])
        if record.asked is None and (editing := _editing(known)) in wanted:
            a = record.address
            editor = f"{a.editor}/{a.variant}" if a.variant else a.editor
            name = f"{a.grid}/{a.model}/{a.dataset}/{editor}/{a.n_batches}x{a.batch_size}"
            containing = Containing(key=a.cell_key, name=name, done=True)
            whole.setdefault(editing, []).append((containing, known))
    able = sorted(able, key=_asks, reverse=True)
    for cell in able:
        found = Containing(key=key_of(cell), name=cell.path, done=False)
        whole.setdefault(_editing(identity_of(cell)), []).append((found, identity_of(cell)))
    contained: dict[str, Containing] = {}
    for cell in able:
        key, own = key_of(cell), identity_of(cell)
        safe = share_prefixes and editor_class(cell.editor.editor).prefix_safe
        for containing, identity in whole[_editing(own)]:
            if containing.key == key:
                break
            if containing.key not in contained and contains(identity, own, safe):
                contained[key] = containing
                break
    return contained


def contains(
    whole: Mapping[str, Any], part: Mapping[str, Any], share_prefixes: bool = False
) -> bool:
    """Whether the cell of one identity has all rows of the cell of another.

    The editing is the same, that is the stream, or the beginning of a longer one where that will
    do; of the unedited model any stream does that has the same edits. It is scored by the
    protocols and measurements of the other, and wherever that is scored. Fluency and consistency
    have their prompts from the whole stream: a longer one has others.

    Args:
        whole: An identity.
        part: The other one.
        share_prefixes: Whether the beginning of a longer stream will do: the editor makes the same
            model there, and the costs of the longer one may stand for those of the shorter.
    """
    if _editing(whole) != _editing(part):
        return False
    same_batches = whole["stream"]["batch_size"] == part["stream"]["batch_size"]
    same_stream = whole["stream"] == part["stream"]
    # Which edits are in a sample depends on the length of the stream.
    longer = (part["editor"] == "none" or (share_prefixes and same_batches)) and not (
        part.get("scored_edits")
    )
    if not (same_stream or longer):
        return False
    same_length = _n_edits(whole) == _n_edits(part)
    if not same_length and measured_of(part) & OF_ALL_EDITS:
        return False
    return (
        set(part["protocols"]) <= set(whole["protocols"])
        and _points(part) <= _points(whole)
        and _measured(part) <= _measured(whole)
    )


def _editing(identity: Mapping[str, Any]) -> str:
    """Hash of what is edited and how, however long and by whatever it is scored."""
    return fingerprint({name: v for name, v in identity.items() if name not in _SCORING})


def _points(identity: Mapping[str, Any]) -> set[int]:
    """Edits after which a cell is scored."""
    stream = identity["stream"]
    batches = {*checkpoints(stream["n_batches"], identity["checkpoints"])}
    return {n * stream["batch_size"] for n in batches | {*identity.get("also_after", ())}}


def _n_edits(identity: Mapping[str, Any]) -> int:
    stream = identity["stream"]
    return int(stream["n_batches"] * stream["batch_size"])


def _measured(identity: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Measurements of a cell, each with the hash of the data it looks at."""
    measured = identity.get("measurements", {})
    return {(name, measured["material_hash"]) for name in measured.get("names", ())}


def _asks(cell: Cell) -> tuple[int, ...]:
    """How much a cell asks for: what contains others asks for at least as much as they do."""
    return (cell.n_edits, len(cell.points), len(cell.protocols), len(cell.measurements))


def contained_cells(
    cells: Iterable[Cell], contained: Mapping[str, Containing]
) -> list[ContainedCell]:
    """What the lake is to keep of the cells that are contained in others."""
    return [
        ContainedCell(
            address=address_of(cell),
            identity=identity_of(cell),
            n_edits=cell.n_edits,
            within=contained[key_of(cell)].key,
        )
        for cell in cells
        if key_of(cell) in contained
    ]
