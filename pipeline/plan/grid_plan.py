"""Plan of a grid: its cells, which of them the lake has, and which may run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.grid import DatasetEntry, Grid
from pipeline.errors import ConfigError
from pipeline.inputs.checkpoints import check_weights, is_folder
from pipeline.inputs.datasets import lacking, pool_origin, pool_remedy, source_of, unread
from pipeline.inputs.fingerprints import changed_fields
from pipeline.plan.cells import Cell, cells_of
from pipeline.plan.versions import code_version
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import SCORES, CellAddress
from rledit.datasets import RowError, RowErrors
from rledit.datasets.check import unread_keys
from rledit.editors import editor_class
from rledit.records import PROBES, SPLITS


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells of a grid, sorted by what the lake knows of them.

    Attributes:
        cells: All cells.
        done: Those whose rows lie in the lake.
        failed: Reasons of those that failed before, by key; they are run again.
        outdated: Keys in the lake that stand at a cell's path with another identity.
        refused: Why cells cannot run, by key, as preflight found out.
        other_code: Version of the code by key, of cells with rows in the lake that other code
            than this made. They are done, or outdated where they are to be run again.
    """

    cells: tuple[Cell, ...]
    done: frozenset[str]
    failed: dict[str, str]
    outdated: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    other_code: Mapping[str, str] = field(default_factory=dict)

    def reason(self, cell: Cell) -> str | None:
        """Why a cell is left out; None where it can run."""
        return cell.skip_reason or self.refused.get(cell.key)

    @property
    def missing(self) -> tuple[Cell, ...]:
        """Cells still to run."""
        return tuple(cell for cell in self.cells if cell.key not in self.done)


def make_plan(
    grid: Grid,
    lake: Lake,
    replace: bool = False,
    cells: Sequence[Cell] | None = None,
    rerun_other_code: bool = False,
) -> Plan:
    """Compare a grid with the lake.

    Args:
        grid: The grid.
        lake: Where its results lie, or will lie.
        replace: Accept that finished cells at the same path have another identity; they are
            listed in `Plan.outdated` instead of stopping.
        cells: Those of its cells to look at; None: all.
        rerun_other_code: Finished cells that another version of the code made are not done; they
            are listed in `Plan.outdated`, too.

    Raises:
        ConfigError: A finished cell stands at a cell's path with another identity, or a stream
            does not fit its data.
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
    records = lake.manifest(grid.name) if lake.exists() else []
    by_path: dict[tuple[object, ...], Cell] = {_path(cell.address): cell for cell in cells}
    outdated: list[str] = []
    for record in records:
        stands = by_path.get(_path(record.address))
        if stands is None or stands.key == record.address.cell_key or not record.done:
            continue
        if not replace:
            changes = changed_fields(record.values["identity"], stands.identity)
            raise ConfigError(
                f"{stands.path} is in the lake with other settings: {'; '.join(changes)}. Give the "
                "editor another variant or the grid another name, or replace the old rows with "
                "--replace"
            )
        outdated.append(record.address.cell_key)
    known = {record.address.cell_key: record for record in records}
    asked = {cell.key for cell in cells}
    other_code = {
        key: str(record.values["code_version"])
        for key, record in known.items()
        if record.done and key in asked and record.values["code_version"] != code_version()
    }
    again = tuple(other_code) if rerun_other_code else ()
    outdated += again
    return Plan(
        cells=cells,
        done=frozenset(key for key, record in known.items() if record.done) - {*again},
        failed={
            key: record.reason or record.status
            for key, record in known.items()
            if not record.done and key in asked
        },
        outdated=tuple(outdated),
        other_code=other_code,
    )


def check_rows(cells: Sequence[Cell]) -> None:
    """Read the edits of every dataset.

    Raises:
        RowErrors: Rows cannot be mapped, of all datasets together.
        DatasetError: A dataset cannot be read for another reason.
    """
    errors: list[RowError] = []
    for dataset in {cell.dataset.name: cell.dataset for cell in cells}.values():
        try:
            source_of(dataset)
        except RowErrors as error:
            errors += error.errors
    if errors:
        raise RowErrors(errors)


def check_cell(cell: Cell) -> None:
    """Find what would fail later, before anything expensive starts.

    Raises:
        ConfigError: The data holds too few edits for the stream or for a training trajectory, or
            the model of this cell cannot be sharded.
    """
    check_sharded(cell)
    if cell.skip_reason is None and cell.insufficient_data is not None:
        raise ConfigError(f"{cell.path}: {cell.insufficient_data}; {_enlarge(cell)}")


def _enlarge(cell: Cell) -> str:
    """What to do about a pool that is too small."""
    split = cell.dataset.split
    if cell.source().sizes()[split] >= cell.n_edits:  # it is the train pool
        return f"shorten the trajectory, or {pool_remedy(cell.dataset, 'train')}"
    return f"shorten the stream, or {pool_remedy(cell.dataset, split)}"


def check_corpus(cells: Sequence[Cell]) -> None:
    """Ask for running text where an editor needs key covariance of a model that has no world.

    Raises:
        ConfigError: There is none; names the editors and models, and what to give.
    """
    lacking = [
        cell
        for cell in cells
        if "statistics" in cell.needs
        and cell.model.checkpoint is not None
        and cell.statistics.corpus is None
    ]
    if lacking:
        editors = list(dict.fromkeys(cell.label for cell in lacking))
        need = "needs" if len(editors) == 1 else "need"
        models = ", ".join(dict.fromkeys(cell.model.name for cell in lacking))
        raise ConfigError(
            f"covariance.corpus is not given, and {', '.join(editors)} {need} key covariance of "
            f"running text on {models}: give a .txt, .jsonl or Parquet file with --set "
            f"covariance.corpus=wiki.jsonl, or leave {', '.join(editors)} out"
        )


def check_sharded(cell: Cell) -> None:
    """Refuse a sharded model for an editor or precision that cannot have one.

    Raises:
        ConfigError: The cell's grid shards its model, and it cannot be.
    """
    reason = unshardable(cell)
    if cell.resources.sharding != "none" and reason is not None:
        raise ConfigError(f"{cell.path}: {reason}")


def unshardable(cell: Cell) -> str | None:
    """Why a cell's model cannot be sharded, with the remedy; None where it can."""
    if not editor_class(cell.editor.editor).shardable:
        return (
            f"{cell.label} differentiates with respect to whole matrices, which no "
            "rank of a sharded model holds; set resources.sharding: none for it, in a grid of its "
            "own, with `ranks` to share out the scoring"
        )
    if cell.model.checkpoint is not None and cell.model.dtype == "float64":
        return "a float64 model cannot be sharded; load it in float32 or bfloat16"
    if cell.model.checkpoint is not None and cell.quantised is not None:
        return (
            f"a quantised checkpoint ({cell.quantised.words}) is turned back into plain matrices "
            "while it is loaded whole, so it cannot be sharded; set resources.sharding: none"
        )
    return None


def pool_lines(cells: Sequence[Cell]) -> list[str]:
    """Sizes of the pools of every dataset of a grid, and what their edits lack, a line each."""
    datasets = {cell.dataset.name: cell.dataset for cell in cells}
    lines = []
    for name, dataset in datasets.items():
        sizes = source_of(dataset).sizes()
        pools = ", ".join(f"{pool} {size}" for pool, size in sizes.items())
        lines.append(f"facts of {name}: {pools}")
        if dataset.files:
            lines += [f"  {split}: {pool_origin(dataset, split)}" for split in SPLITS]
        total = sum(sizes[split] for split in SPLITS)
        for probe in PROBES:
            if n := sum(lacking(dataset, split, probe) for split in SPLITS):
                lines.append(f"  without a {probe}: {n} of {total}, not scored by one")
        lines += [f"  {line}" for line in _unmeasured(cells, dataset)]
        for file, keys in unread(dataset).items():
            lines.append(f"  not read of {file}: {unread_keys(keys)}")
    return lines


def _unmeasured(cells: Sequence[Cell], dataset: DatasetEntry) -> Iterator[str]:
    """What is asked for and has no data, beside the probes: those are counted by themselves."""
    streams = {
        (cell.dataset.split, cell.n_edits, cell.seed): cell
        for cell in cells
        if cell.dataset == dataset and cell.skip_reason is None
    }
    found = dict.fromkeys(item for cell in streams.values() for item in cell.not_measured.items())
    for what, why in found:
        if what not in SCORES:
            yield f"{what}: asked for and not measured, {why}"


def failed_lines(plan: Plan) -> list[str]:
    """Why cells failed before, a line for each reason."""
    counts = Counter(plan.failed[key] for cell in plan.missing if (key := cell.key) in plan.failed
                     and cell.skip_reason is None)  # fmt: skip
    return [f"failed before, {n} of the cells to run: {reason}" for reason, n in counts.items()]


def code_lines(plan: Plan) -> list[str]:
    """That done cells were made by other code than this, in one line; none where none were."""
    if not plan.other_code:
        return []
    versions = Counter(plan.other_code.values())
    made = ", ".join(f"{n} by {version}" for version, n in sorted(versions.items()))
    of = len({cell.key for cell in plan.cells} & (plan.done | {*plan.other_code}))
    lead = f"{len(plan.other_code)} of {of} done cells are of other code than {code_version()}"
    if plan.done.isdisjoint(plan.other_code):
        return [f"{lead} ({made}): run again, their old rows are dropped"]
    return [
        f"{lead} ({made}) and kept: where a change of the code since changes numbers, theirs are "
        "the old ones; --rerun-other-code runs them again"
    ]


def skip_lines(cells: Sequence[Cell]) -> list[str]:
    """Why cells cannot be run on their data, a line for each reason."""
    reasons = dict.fromkeys(cell.skip_reason for cell in cells if cell.skip_reason is not None)
    return [f"skipped: {reason}" for reason in reasons]


def _path(address: CellAddress) -> tuple[object, ...]:
    return (
        address.scale,
        address.editor,
        address.variant,
        address.model,
        address.dataset,
        address.seed,
        address.batch_size,
        address.n_batches,
    )
