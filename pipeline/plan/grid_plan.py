"""Plan of a grid: its cells, which of them the lake has, and which may run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from pathlib import Path

from pipeline.config.grid import DatasetEntry, Grid
from pipeline.errors import ConfigError
from pipeline.inputs.checkpoints import check_weights, is_folder
from pipeline.inputs.datasets import lacking, pool_origin, source_of, unread
from pipeline.plan.cell_data import read_not_measured, validation_batches
from pipeline.plan.cell_keys import address_of, identity_of, key_of
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.checks import check_cell, check_corpus, check_rows, skip_reason
from pipeline.plan.done_cells import Containing, contained_cells, contains, find_done
from pipeline.plan.protocol_fit import fit_lines
from pipeline.plan.versions import code_version
from pipeline.results.lake.addresses import Place, doubles, place_of, shown
from pipeline.results.lake.contained import ContainedCell
from pipeline.results.lake.key_versions import averaged_settings, changed_fields, without_labels
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import SCORES, CellAddress, CellRecord
from rledit.datasets.check import unread_keys
from rledit.records import PROBES, SPLITS


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells of a grid, sorted by what the lake knows of them.

    Attributes:
        cells: All cells, one for each address of the grid.
        done: Keys of those whose rows lie in the lake, whichever grid has run them.
        failed: Reasons of those that failed before, by key; they are run again.
        outdated: Keys in the lake whose rows go, as no grid asks for them any longer or other code
            is to make them again.
        refused: Why cells cannot run, by key, as preflight found out.
        other_code: Version of the code by key, of cells with rows in the lake that other code
            than this made. They are done, or outdated where they are to be run again.
        contained: Cells that another one has the rows of, done or to run, by key.
        shared: Names of the other grids of the lake that ask for a cell, by key.
        doubles: Finished rows of an earlier version that are one cell today, by key, the one that
            counts first.
    """

    cells: tuple[Cell, ...]
    done: frozenset[str]
    failed: dict[str, str]
    outdated: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    other_code: Mapping[str, str] = field(default_factory=dict)
    contained: Mapping[str, Containing] = field(default_factory=dict)
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    doubles: Mapping[str, Sequence[CellRecord]] = field(default_factory=dict)

    def reason(self, cell: Cell) -> str | None:
        """Why a cell is left out; None where it can run."""
        return skip_reason(cell) or self.refused.get(key_of(cell))

    @property
    def missing(self) -> tuple[Cell, ...]:
        """Cells still to run, each once, however many addresses of the grid it has.

        One that is contained in another is not run, unless that one is refused.
        """
        first = {key_of(cell): cell for cell in reversed(self.cells)}
        answered = self.done | {contained.address.cell_key for contained in self.without_rows}
        return tuple(
            cell
            for cell in self.cells
            if key_of(cell) not in answered and first[key_of(cell)] is cell
        )

    @property
    def without_rows(self) -> list[ContainedCell]:
        """Cells that are shown with the rows of another cell, done or still to run."""
        return contained_cells(
            self.cells, {k: c for k, c in self.contained.items() if c.key not in self.refused}
        )


def make_plan(
    grid: Grid,
    lake: Lake,
    replace: bool = False,
    cells: Sequence[Cell] | None = None,
    rerun_other_code: bool = False,
) -> Plan:
    """Compare a grid with the lake.

    A cell that any grid of the lake has done is done: what it is called here does not matter.

    Args:
        grid: The grid.
        lake: Where its results lie, or will lie.
        replace: Accept that finished cells at the same address have another identity; where no
            other grid asks for them, they are listed in `Plan.outdated` instead of stopping.
            Those of other seeds stay, as nothing takes their place yet.
        cells: Those of its cells to look at; None: all.
        rerun_other_code: Finished cells that another version of the code made are not done; they
            are listed in `Plan.outdated`, too.

    Raises:
        ConfigError: A finished cell stands at a cell's address with another identity, or at that
            of another of its seeds with other settings, or a stream does not fit its data.
        DatasetError: Edits cannot be read; rows that cannot be mapped are named all at once.
    """
    cells = tuple(cells_of(grid) if cells is None else cells)
    for folder in {cell.model.checkpoint for cell in cells if cell.model.checkpoint}:
        if is_folder(folder):
            check_weights(Path(folder))  # a cell's key is made from what they say
    check_rows(cells)
    check_corpus(cells)
    for cell in cells:
        check_cell(cell)
    rows = lake.rows() if lake.exists() else []
    records = shown(rows, lake.addresses()) if rows else []
    if not replace:
        _check_seeds(cells, records)
    outdated = _outdated(cells, records, replace)
    found = find_done(cells, records, rerun_other_code, outdated, grid.share_prefixes)
    asked = {key_of(cell) for cell in cells}
    again = tuple(found.other_code) if rerun_other_code else ()
    return Plan(
        cells=cells,
        done=found.done,
        failed=found.failed,
        outdated=(*outdated, *again),
        other_code=found.other_code,
        contained=found.contained,
        shared=_shared(grid.name, asked, records),
        doubles={key: several for key, several in doubles(rows).items() if key in asked},
    )


def still_outdated(plan: Plan, lake: Lake) -> list[str]:
    """Those of a plan's outdated keys that the lake still has as the plan found them.

    Another run may have made the rows anew since, or may show them: they are its own then.
    """
    if not plan.outdated:
        return []
    records = lake.shown()
    now = {*_outdated(plan.cells, records, True), *find_done(plan.cells, records).other_code}
    return [key for key in plan.outdated if key in now]


def _outdated(cells: Sequence[Cell], records: Sequence[CellRecord], replace: bool) -> list[str]:
    """Finished cells that the grid's cells take the place of, and that stand nowhere else.

    Raises:
        ConfigError: There are such, or some that stand elsewhere, and they are not to be replaced.
    """
    taking = {place_of(address_of(cell)): cell for cell in cells}
    asked = {key_of(cell) for cell in cells}
    replaced: list[str] = []
    left: set[str] = set()
    for record in records:
        key, stands = record.address.cell_key, taking.get(place_of(record.address))
        if stands is None or key in asked:
            left.add(key)
            if record.asked is not None:
                left.add(record.asked.within)
        elif record.done:
            identity = without_labels(record.values["identity"])
            if contains(identity, identity_of(stands)):
                left.add(key)
                continue
            if not replace:
                changes = changed_fields(identity, identity_of(stands))
                raise ConfigError(
                    f"{stands.path} is in the lake with other settings: {'; '.join(changes)}. Give "
                    "the editor another variant or the grid another name, or replace the old rows "
                    "with --replace"
                )
            replaced.append(key)
    return [key for key in dict.fromkeys(replaced) if key not in left]


def _check_seeds(cells: Sequence[Cell], records: Sequence[CellRecord]) -> None:
    """Refuse cells that tables would average with finished ones of other settings, as seeds.

    What stands at the address of a cell is not looked at: `_outdated` does that.
    """
    taking = {place_of(address_of(cell)) for cell in cells}
    beside = {_beside(address_of(cell)): cell for cell in cells}
    for record in records:
        cell = beside.get(_beside(record.address))
        if cell is None or not record.done or place_of(record.address) in taking:
            continue
        one, two = (averaged_settings(i) for i in (record.values["identity"], identity_of(cell)))
        if one != two:
            changes = "; ".join(changed_fields(one, two))
            raise ConfigError(
                f"{cell.path} would be averaged with seed {record.address.seed} of the lake, which "
                f"has other settings: {changes}. Give the editor another variant or the grid "
                "another name, or run all its seeds again with --replace"
            )


def _beside(address: CellAddress) -> Place:
    """Where an address is, whichever its seed."""
    return place_of(replace_fields(address, seed=0))


def _shared(
    grid: str, keys: Collection[str], records: Sequence[CellRecord]
) -> dict[str, tuple[str, ...]]:
    """The other grids that ask for some of the cells, by key."""
    found: dict[str, set[str]] = {}
    for record in records:
        if record.address.grid != grid and record.address.cell_key in keys:
            found.setdefault(record.address.cell_key, set()).add(record.address.grid)
    return {key: tuple(sorted(names)) for key, names in found.items()}


def counts_line(plan: Plan) -> str:
    """How many cells a run has to do, and what becomes of the others."""
    keys = {key_of(cell) for cell in plan.cells}
    parts = [f"{len(plan.cells)} cells", f"{len(plan.missing)} to run"]
    done = keys & plan.done
    if done:
        grids = Counter(name for key in done for name in plan.shared.get(key, ()))
        others = ", ".join(f"{n} of them shared with grid {name}" for name, n in grids.items())
        parts.append(f"{len(done)} done already" + (f" ({others})" if others else ""))
    if contained := len({cell.address.cell_key for cell in plan.without_rows} - done):
        parts.append(f"{contained} with their rows in other cells")
    if failed := sum(key_of(cell) in plan.failed for cell in plan.missing):
        parts.append(f"{failed} of those to run failed before")
    return ", ".join(parts)


def shared_lines(plan: Plan) -> list[str]:
    """Which cells other grids have done, and which of the grid's own are one cell, for people."""
    lines = []
    done = [key for key in map(key_of, plan.cells) if key in plan.done]
    grids = Counter(name for key in done for name in plan.shared.get(key, ()))
    for name, n in sorted(grids.items()):
        lines.append(
            f"shared: {n} of {len(plan.cells)} cells are cells of grid {name}, which are done; "
            "they are shown under both, and not run again"
        )
    by_key: dict[str, list[str]] = {}
    for cell in plan.cells:
        by_key.setdefault(key_of(cell), []).append(cell.path)
    for first, *others in by_key.values():
        lines += [f"shared: {path} is the same cell as {first}, run once" for path in others]
    for key, whole in plan.contained.items():
        state = "which is done" if whole.done else "which is run"
        lines.append(f"shared: {by_key[key][0]} has its rows in {whole.name}, {state}")
    return lines


def double_lines(plan: Plan, lake: Lake) -> list[str]:
    """Which cells an earlier version has run more than once, and whether their scores agree."""
    lines = []
    for key, (first, *others) in plan.doubles.items():
        for other in others:
            one, two = (lake.columns("edits", record) for record in (first, other))
            equal = all(one[name] == two[name] for name in SCORES)
            a, b = (f"{r.address.grid} ({r.stored_key})" for r in (first, other))
            verdict = "with the same scores" if equal else f"with other scores; those of {a} count"
            lines.append(f"cell {key} lies in the lake as {a} and as {b}, {verdict}")
    return lines


def pool_lines(cells: Sequence[Cell]) -> list[str]:
    """Sizes of the pools of every dataset of a grid, and what their edits lack, a line each."""
    datasets = {cell.dataset.name: cell.dataset for cell in cells}
    lines = []
    for name, dataset in datasets.items():
        sizes = source_of(dataset).sizes()
        pools = ", ".join(f"{pool} {size}" for pool, size in sizes.items())
        lines.append(f"facts of {name}: {pools}")
        if dataset.real_facts:
            lines.append(
                "  locality: of those, the facts that the unedited model knows; it is asked first"
            )
        if dataset.files:
            lines += [f"  {split}: {pool_origin(dataset, split)}" for split in SPLITS]
            lines += [f"  {line}" for line in fit_lines(cells, dataset)]
        total = sum(sizes[split] for split in SPLITS)
        for probe in PROBES:
            if n := sum(lacking(dataset, split, probe) for split in SPLITS):
                lines.append(f"  without a {probe}: {n} of {total}, not scored by one")
        lines += [f"  {line}" for line in _validated_short(cells, dataset)]
        lines += [f"  {line}" for line in _unmeasured(cells, dataset)]
        for file, keys in unread(dataset).items():
            lines.append(f"  not read of {file}: {unread_keys(keys)}")
    return lines


def _validated_short(cells: Sequence[Cell], dataset: DatasetEntry) -> list[str]:
    """Trainings that are validated on a shorter stream than they are evaluated on."""
    found = {
        f"{cell.label} is validated on {n} batches and edits {cell.stream.n_batches}: steps that "
        "suit a short stream may be too large for a long one"
        for cell in cells
        if cell.dataset == dataset and (n := validation_batches(cell)) and n < cell.stream.n_batches
    }
    return sorted(found)


def _unmeasured(cells: Sequence[Cell], dataset: DatasetEntry) -> Iterator[str]:
    """What is asked for and has no data, beside the probes: those are counted by themselves."""
    streams = {
        (cell.dataset.split, cell.n_edits, cell.seed): cell
        for cell in cells
        if cell.dataset == dataset and skip_reason(cell) is None
    }
    found = dict.fromkeys(
        item for cell in streams.values() for item in read_not_measured(cell).items()
    )
    for what, why in found:
        if what not in SCORES:
            yield f"{what}: asked for and not measured, {why}"


def failed_lines(plan: Plan) -> list[str]:
    """Why cells failed before, a line for each reason."""
    missing = [cell for cell in plan.missing if skip_reason(cell) is None]
    counts = Counter(plan.failed[key] for key in map(key_of, missing) if key in plan.failed)
    return [f"failed before, {n} of the cells to run: {reason}" for reason, n in counts.items()]


def code_lines(plan: Plan) -> list[str]:
    """That done cells were made by other code than this, in one line; none where none were."""
    if not plan.other_code:
        return []
    versions = Counter(plan.other_code.values())
    made = ", ".join(f"{n} by {version}" for version, n in sorted(versions.items()))
    of = len({key_of(cell) for cell in plan.cells} & (plan.done | {*plan.other_code}))
    lead = f"{len(plan.other_code)} of {of} done cells are of other code than {code_version()}"
    if plan.done.isdisjoint(plan.other_code):
        return [f"{lead} ({made}): run again, their old rows are dropped"]
    return [
        f"{lead} ({made}) and kept: where a change of the code since changes numbers, theirs are "
        "the old ones; --rerun-other-code runs them again"
    ]


def skip_lines(cells: Sequence[Cell]) -> list[str]:
    """Why cells cannot be run on their data, a line for each reason."""
    reasons = dict.fromkeys(skip_reason(cell) for cell in cells if skip_reason(cell) is not None)
    return [f"skipped: {reason}" for reason in reasons]
