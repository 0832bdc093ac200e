"""The edited model of a finished cell, as a checkpoint of its own or as the change alone.

Where edits lie in a memory beside the model, a checkpoint is the unedited model with the memory and
a loader beside it.

The edited matrices are taken from the cache where the grid said `keep_edited`. Otherwise the cell
is run again, from the entry that its run left in the lake, and its rows have to come out as they
are there.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from pipeline.config.grid import AnswersEntry
from pipeline.config.resources import ResourcesEntry
from pipeline.inputs.checkpoints import read_config
from pipeline.inputs.model_loading import load_model
from pipeline.inputs.quantised_weights import quantised
from pipeline.plan.architecture import architecture_of
from pipeline.plan.cache_names import trained_name
from pipeline.plan.cell_keys import identity_of, key_of
from pipeline.plan.cells import Cell
from pipeline.plan.stored_spec import read_cell_spec
from pipeline.results.lake.lake import Lake, LakeError
from pipeline.results.lake.records import CellRecord
from pipeline.run.cache import Cache
from pipeline.run.cache_migration import migrate_cache
from pipeline.run.reporting import Report, silent
from pipeline.run.resume import write_tensors
from pipeline.run.stages.ask_known_facts import with_known
from pipeline.run.stages.calibrated import settings_with_step
from pipeline.run.stages.edit import StreamRows, edit_stream, edited_name, state_folder
from pipeline.run.stages.prepare import prepare_model
from pipeline.run.stages.train import load_trained
from pipeline.run.tasks import perform, tasks_of
from pipeline.run.weight_files import CheckpointFiles
from pipeline.storage.run_paths import RunPaths
from rledit.editing.deltas import Delta
from rledit.editing.export import (
    DELTA_FILE,
    ExportError,
    Form,
    adapter_of,
    write_adapter,
    write_checkpoint,
    write_delta,
)
from rledit.editing.memories import refuse_form, write_with_memory
from rledit.editors import editor_class
from rledit.editors.overlay_editor import OverlayEditor
from rledit.families import is_transposed
from rledit.shift import LowRankShift

logger = logging.getLogger(__name__)

_COMPARED = ("efficacy", "generalization", "specificity", "specificity_self")


def export(
    key: str,
    run_paths: RunPaths,
    folder: Path,
    delta: bool = False,
    report: Report = silent,
    *,
    form: Form = "checkpoint",
    rank: int | None = None,
) -> Path:
    """Write the model that a cell's stream ended with, in the forms that a ledger has.

    Args:
        key: The cell's key, or an unambiguous beginning of it.
        run_paths: Where its results and caches lie.
        folder: Where to write; made if absent.
        delta: The same as form `delta`.
        report: Told how far a cell that has to be run again is.
        form: A whole checkpoint; only the change of the edited matrices, in float64: the original
            plus the change, rounded to the model's precision, is the edited matrix bit by bit; or
            a LoRA adapter.
        rank: Of the adapter; None: the one at which it is exact.

    Returns:
        The folder of the checkpoint, or the file of the change.

    Raises:
        ExportError: There is a rank, and the form is no adapter.
        LakeError: The cell is not done, or running it again does not give its rows.
        ExportError: It has no such form, or was run on a GPU, has to be run again, and there is
            none here.
    """
    form = "delta" if delta else form
    if rank is not None and form != "lora":  # before a cell is run again
        raise ExportError(f"--rank is for the form lora, not for {form}")
    lake, cache = Lake(run_paths.lake), Cache(run_paths.cache)
    record = _record(key, lake)
    cell = read_cell_spec(record, lake.storage)
    remembers = issubclass(editor_class(cell.editor.editor), OverlayEditor)
    if remembers:
        refuse_form(cell.label, form)
    migrate_cache([cell], run_paths.cache)
    made_by = str(record.values["code_version"])
    kept = _kept(cell, made_by, cache)
    if kept is None:
        _run_again(cell, record, run_paths, report)
        kept = cache.folder / edited_name(cell)
        # Compared with the rows: as good as kept by their own run.
        write_tensors(kept, load_file(kept), {"code_version": made_by})
        cache.publish(edited_name(cell), replace=True)
    model = prepare_model(cell, cache, report)
    metadata = {"cell": key_of(cell), "code_version": made_by, "identity": identity_of(cell)}
    edited = load_file(kept)
    if remembers:
        return _write_with_memory(cell, model, edited, folder, metadata, cache)
    if form == "checkpoint":
        return _write_checkpoint(cell, model, edited, folder, metadata)
    changes = _changes(cell, model, edited)
    if form == "lora":
        return _write_adapter(cell, changes, folder, rank)
    return write_delta(changes, folder / DELTA_FILE, metadata)


def _record(key: str, lake: Lake) -> CellRecord:
    known = lake.manifest()
    for record in known:
        if record.asked is not None and record.address.cell_key.startswith(key):
            a = record.address
            raise LakeError(
                f"cell {a.cell_key} ({a.n_batches} batches of {a.batch_size}) has no model of its "
                f"own: its rows are in cell {record.asked.within}. Export that one, or run the "
                "grid into another lake (--lake)"
            )
    records = [record for record in known if record.asked is None]
    found = [r for r in records if r.address.cell_key.startswith(key) or r.stored_key == key]
    if len(found) != 1:
        keys = ", ".join(r.address.cell_key for r in (found or records)[:5]) or "none"
        raise LakeError(
            f"{lake.storage}: {len(found)} cells have a key that begins with {key!r}; keys there: "
            f"{keys}"
        )
    if not found[0].done:
        raise LakeError(f"cell {key} is {found[0].status}: {found[0].reason}")
    return found[0]


def _kept(cell: Cell, made_by: str, cache: Cache) -> Path | None:
    """What the cell's run has kept; None where it kept nothing, or other code has since."""
    path = cache.file(edited_name(cell), newest=True)
    if path is None:
        return None
    with safe_open(path, "pt") as file:
        found = (file.metadata() or {}).get("code_version")
    return path if found in (None, made_by) else None


def _run_again(cell: Cell, record: CellRecord, run_paths: RunPaths, report: Report) -> None:
    """Run a cell in this process, with its model whole, and keep what it has edited."""
    given = cell.resources
    if given.gpus and not torch.cuda.is_available():
        raise ExportError(
            f"cell {key_of(cell)} was run on a GPU and kept no edited matrices; PyTorch sees no "
            "GPU here, and on a CPU it comes out with other scores. Export it on a machine with a "
            "GPU, or run its grid with keep_edited: true into another lake (--lake), then export "
            "from that"
        )
    logger.info("%s: its edited matrices were not kept; running it again", cell.path)
    # Of the store a network's key tells whether there is one.
    alone = ResourcesEntry(gpus=given.gpus, prefix_store_gb=given.prefix_store_gb)
    cell = replace(cell, resources=alone, keep_edited=True, answers=AnswersEntry(sample=0))
    cache = Cache(run_paths.cache)
    for task in tasks_of([cell]).values():
        if task.kind != "edit":
            perform(task, run_paths, report)
    network = cache.file(trained_name(cell)) if cell.trains else None
    trained = load_trained(network) if network else None
    cell = with_known(cell, cache)
    rows = edit_stream(cell, prepare_model(cell, cache, report), cache, trained, report)
    state_folder(cell, cache).clear()
    changed = _changed(rows, Lake(run_paths.lake).columns("edits", record))
    if changed:
        cache.delete(edited_name(cell))
        raise LakeError(
            f"cell {key_of(cell)} came out with {changed} other scores than those in the lake, so "
            "this is another model; machine or versions differ from those of the run. Run its grid "
            "there with keep_edited: true into another lake (--lake), then export from that"
        )


def _changed(rows: StreamRows, known: Mapping[str, list[Any]]) -> int:
    """Scores of single edits that are not what the lake has."""
    key = ("checkpoint", "protocol", "edit_index")
    there = {
        tuple(row[: len(key)]): row[len(key) :]
        for row in zip(*(known[name] for name in (*key, *_COMPARED)), strict=True)
    }
    here = {tuple(r[n] for n in key): tuple(r[n] for n in _COMPARED) for r in rows.edits}
    return sum(here.get(place) != there.get(place) for place in here.keys() | there.keys())


def _write_checkpoint(
    cell: Cell, source: Path, edited: Mapping[str, Tensor], folder: Path, metadata: dict[str, Any]
) -> Path:
    model: Any = load_model(source, _dtype(cell))
    with torch.no_grad():
        for name, value in edited.items():
            linear = model.get_submodule(name)
            linear.weight.copy_(value.T if is_transposed(linear) else value)
    tokenizer = AutoTokenizer.from_pretrained(source)
    return write_checkpoint(model, tokenizer, folder, metadata=metadata)


def _write_with_memory(
    cell: Cell,
    source: Path,
    memory: Mapping[str, Tensor],
    folder: Path,
    metadata: dict[str, Any],
    cache: Cache,
) -> Path:
    return write_with_memory(
        load_model(source, _dtype(cell)),
        AutoTokenizer.from_pretrained(source),
        folder,
        editor=cell.editor.editor,
        config=settings_with_step(cell, cache),
        memory=memory,
        prompting=cell.prompting,
        metadata=metadata,
    )


def _changes(cell: Cell, source: Path, edited: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter → what the cell has added to it, in float64 and in the layout of the parameter."""
    changes: dict[str, Tensor] = {}
    for name, original in _originals(cell, source, edited).items():
        linear = architecture_of(cell).model.get_submodule(name)
        value = edited[name].T if is_transposed(linear) else edited[name]
        changes[f"{name}.weight"] = (value.double() - original.double()).contiguous()
    return changes


def _write_adapter(
    cell: Cell, changes: Mapping[str, Tensor], folder: Path, rank: int | None
) -> Path:
    model = architecture_of(cell).model
    terms: dict[str, tuple[LowRankShift, ...]] = {}
    for parameter, change in changes.items():
        name = parameter.removesuffix(".weight")
        upright = change if is_transposed(model.get_submodule(name)) else change.T
        terms[name] = (LowRankShift(None, upright.contiguous()),)
    adapter = adapter_of([Delta(terms)], rank)
    logger.info(
        "adapter of rank %d (exact: %d), %.2g of the change left out, %.1f MB",
        adapter.rank,
        adapter.needed,
        adapter.error,
        adapter.n_bytes / 1e6,
    )
    reference = cell.model.checkpoint or cell.model.name
    return write_adapter(model, adapter, folder, reference)


def _originals(cell: Cell, source: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The unedited matrices as the model keeps them."""
    dtype = _dtype(cell)
    if quantised(read_config(source)) is not None:
        model = load_model(source, dtype)
        return {name: model.get_parameter(f"{name}.weight").detach() for name in names}
    files = CheckpointFiles(source)
    found = {name: files.tensor(f"{name}.weight") for name in names}
    return found if dtype == "auto" else {name: t.to(dtype) for name, t in found.items()}


def _dtype(cell: Cell) -> Any:
    return getattr(torch, cell.model.dtype) if cell.model.checkpoint is not None else "auto"
