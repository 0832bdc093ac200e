"""Checks of cells against their data, before anything runs: reasons to skip one, and errors.

A reason to skip concerns one cell and is recorded for it; an error stops the grid. Everything here
reads the cell's data.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.stored_words import documented_value
from pipeline.errors import ConfigError
from pipeline.inputs.corpus import REAL_FACTS
from pipeline.inputs.datasets import lacking, pool_origin, pool_remedy, source_of
from pipeline.plan.cell_data import available_edits, calibration_edits, read_quantisation
from pipeline.plan.cells import Cell
from pipeline.plan.imported import reads_corpus
from pipeline.plan.spec import once
from rledit.calibration import FEWEST_EDITS
from rledit.datasets import RowError, RowErrors
from rledit.datasets.errors import SHOWN_ROWS
from rledit.editors import editor_class
from rledit.records import Probe, Split, has_probe


@once
def skip_reason(cell: Cell) -> str | None:
    """Why the cell cannot be run on its data at all; None where it can."""
    of_table = cell.scale == "full" and cell.model.preset is not None
    if of_table and (lack := insufficient_data(cell)) is not None:
        # A published table runs as far as the data goes.
        return f"{lack}; {_pool_advice(cell)}"
    if (untaught := _untaught(cell)) is not None:
        return untaught
    if cell.calibrates and (uncalibrated := _uncalibrated(cell)) is not None:
        return uncalibrated
    return _without_subject(cell)


@once
def insufficient_data(cell: Cell) -> str | None:
    """Which pool holds too few edits for the stream, a trajectory or the validation."""
    if (short := _short_pool(cell)) is None:
        return None
    (split, use), wanted = short
    why = f" to validate {cell.label} while it trains" if use == "validation" else ""
    return (
        f"needs {wanted} edits of the {split} pool{why}, which has "
        f"{cell.source().sizes()[split]} ({pool_origin(cell.dataset, split)})"
    )


def _pool_advice(cell: Cell) -> str:
    """What to do about the pool that holds too few edits; "" where all hold enough."""
    if (short := _short_pool(cell)) is None:
        return ""
    (split, use), _ = short
    settings = {
        "stream": "shorten the stream",
        "trajectory": "shorten the trajectory",
        "validation": "lower validation_batches, or set patience: 0 to train without it",
    }
    return f"{settings[use]}, or {pool_remedy(cell.dataset, split)}"


def _short_pool(cell: Cell) -> tuple[tuple[Split, str], int] | None:
    """The first pool that holds too few edits, what for, and how many that needs."""
    size = cell.stream.batch_size
    wanted: dict[tuple[Split, str], int] = {(cell.dataset.split, "stream"): cell.n_edits}
    if cell.trains:
        wanted["train", "trajectory"] = cell.trajectory_batches * size
    if cell.stopping is not None:
        wanted["validation", "validation"] = (cell.stopping.batches or 1) * size
    sizes = cell.source().sizes()
    return next(((key, n) for key, n in wanted.items() if sizes[key[0]] < n), None)


def _uncalibrated(cell: Cell) -> str | None:
    """Why the step cannot be calibrated on the data's pools; None where it can."""
    cls = editor_class(cell.editor.editor)
    n, size = calibration_edits(cell), cell.stream.batch_size
    problem = cls.batch_problem(cell.settings, n) if n else None
    if n >= min(size, FEWEST_EDITS) and problem is None:
        return None
    return (
        f"{cls.step_setting}: auto is calibrated on a batch of the validation pool, or of the "
        f"train pool where that is too small; they have {n} edits at most, too few for batches "
        f"of {size}; "
        f"{pool_remedy(cell.dataset, 'validation')}, or give {cell.label} a number as "
        f"{cls.step_setting}"
    )


def _without_subject(cell: Cell) -> str | None:
    """That the editor looks up subjects and the stream's edits have none."""
    if "subject" not in cell.needs:
        return None
    # One edit mostly tells; where it has no subject, another may have one.
    for n in (min(cell.n_edits, 1), min(cell.n_edits, available_edits(cell))):
        edits = cell.source().draw(cell.dataset.split, n, seed=cell.seed)
        if any(edit.subject is not None for edit in edits) or not edits:
            return None
    return f"{cell.label} looks up subjects, and {cell.dataset.name} gives none"


def _untaught(cell: Cell) -> str | None:
    """What the editor learns from and the train pool lacks; None where it has all."""
    if not cell.learns:
        return None
    if not cell.source().sizes()["train"]:
        return (
            f"{cell.label} learns from the train pool, and that of {cell.dataset.name} is "
            f"empty ({pool_origin(cell.dataset, 'train')}); "
            f"{pool_remedy(cell.dataset, 'train')}, or leave the editor out"
        )
    lacks = [
        f"a {probe} of every training edit, and {_without(cell, probe, n)}"
        for probe in sorted(editor_class(cell.editor.editor).trains_on_of(cell.settings))
        if (n := lacking(cell.dataset, "train", probe))
    ]
    if not lacks:
        return None
    return (
        f"{cell.label} learns from {'; from '.join(lacks)}; give the dataset a train file "
        "whose edits have one, or leave the editor out"
    )


def _without(cell: Cell, probe: Probe, n: int) -> str:
    """How many training edits lack a probe; the first of them, where others have one."""
    total = cell.source().sizes()["train"]
    text = (
        f"{n} of {total} in the train pool of {cell.dataset.name} "
        f"({pool_origin(cell.dataset, 'train')}) have none"
    )
    if n == total:
        return text
    pool = cell.source().draw("train", total, seed=cell.seed)
    places = [edit.source or edit.edit_id for edit in pool if not has_probe(edit, probe)]
    more = f" and {n - SHOWN_ROWS} more" if n > SHOWN_ROWS else ""
    return f"{text} ({', '.join(places[:SHOWN_ROWS])}{more})"


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
            the model of this cell cannot be sharded or knows no real facts.
    """
    check_sharded(cell)
    if cell.dataset.real_facts and cell.model.checkpoint is None:
        raise ConfigError(
            f"{cell.path}: at scale {documented_value(cell.scale)} the model is a proxy trained on "
            "the synthetic world, which knows no real facts; run the grid at scale full, or give "
            "the model a checkpoint"
        )
    if skip_reason(cell) is None and insufficient_data(cell) is not None:
        raise ConfigError(f"{cell.path}: {insufficient_data(cell)}; {_pool_advice(cell)}")


def check_corpus(cells: Sequence[Cell]) -> None:
    """Ask for running text where an editor needs key covariance of a model that has no world.

    Raises:
        ConfigError: There is none; names the editors and models, and what to give.
    """
    lacking = [
        cell
        for cell in cells
        if reads_corpus(cell) and cell.model.checkpoint is not None and cell.corpus is None
    ]
    if lacking:
        editors = list(dict.fromkeys(cell.label for cell in lacking))
        need = "needs" if len(editors) == 1 else "need"
        models = ", ".join(dict.fromkeys(cell.model.name for cell in lacking))
        raise ConfigError(
            f"covariance.corpus is not given, and {', '.join(editors)} {need} key covariance of "
            f"running text on {models}: give a .txt, .jsonl or Parquet file with --set "
            f"covariance.corpus=wiki.jsonl, take the sentences that the package ships with "
            f"covariance.corpus={REAL_FACTS}, or leave {', '.join(editors)} out"
        )


def check_sharded(cell: Cell) -> None:
    """Refuse a sharded model for a precision or checkpoint that cannot be.

    Raises:
        ConfigError: The cell's grid shards its model, and it cannot be.
    """
    reason = unshardable(cell)
    if cell.resources.sharding != "none" and reason is not None:
        raise ConfigError(f"{cell.path}: {reason}")


def unshardable(cell: Cell) -> str | None:
    """Why a cell's model cannot be sharded, with the remedy; None where it can."""
    if cell.model.checkpoint is not None and cell.model.dtype == "float64":
        return "a float64 model cannot be sharded; load it in float32 or bfloat16"
    if cell.model.checkpoint is not None and (packed := read_quantisation(cell)) is not None:
        return (
            f"a quantised checkpoint ({packed.words}) is turned back into plain matrices "
            "while it is loaded whole, so it cannot be sharded; set resources.sharding: none"
        )
    return None
