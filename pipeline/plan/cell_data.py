"""Reads a cell's data files and checkpoint for fingerprints, checks and stages: sizes of pools, the
corpus, how weights are quantised.

Every function here opens files, or asks the hub; what is costly is read once for a cell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.config.gguf_refs import gguf_reference
from pipeline.inputs.checkpoints import cached, fetch_description, read_config
from pipeline.inputs.corpus import CorpusMetadata, corpus_metadata
from pipeline.inputs.eval_data import load_eval_data
from pipeline.inputs.model_loading import weight_facts
from pipeline.inputs.quantised_weights import Quantised, quantised
from pipeline.plan.cells import Cell
from pipeline.plan.spec import once
from rledit.calibration import FEWEST_EDITS, LEAST_EDITS
from rledit.datasets import FileEditSource
from rledit.measurements.registry import EvalData, not_measured
from rledit.protocols import protocol
from rledit.records import Edit, Split
from rledit.world import World

VALIDATED_BATCHES = 20
"""Batches that a training is validated on at most, where its settings name no number."""


def available_edits(cell: Cell) -> int:
    """Edits of the pool that the cell's stream is drawn from."""
    return cell.source().sizes()[cell.dataset.split]


def calibration_pool(cell: Cell) -> Split:
    """Where the batch of a calibration is from: the validation pool, or the train pool where that
    is too small.

    Never from the evaluation pool: what is chosen there must not be scored there.
    """
    sizes = cell.source().sizes()
    enough = min(cell.stream.batch_size, FEWEST_EDITS)
    small = sizes["validation"] < enough and sizes["train"] > sizes["validation"]
    return "train" if small else "validation"


def calibration_edits(cell: Cell) -> int:
    """Edits of the batch that the step is calibrated on."""
    wanted = max(cell.stream.batch_size, LEAST_EDITS)
    return min(wanted, cell.source().sizes()[calibration_pool(cell)])


def calibration_batch(cell: Cell) -> list[Edit]:
    """The edits that the step is calibrated on, for all seeds the same."""
    cell = cell.unseeded
    return cell.source().draw(calibration_pool(cell), calibration_edits(cell), seed=cell.seed)


def validation_batches(cell: Cell) -> int:
    """Batches of the stream that training is validated on; 0 where it is not.

    As many as the evaluation stream has, where the pool holds them: steps that suit a short stream
    are too large for a long one.
    """
    if cell.stopping is None:
        return 0
    held = cell.source().sizes()["validation"] // cell.stream.batch_size
    return cell.stopping.batches or min(cell.stream.n_batches, VALIDATED_BATCHES, held)


def former_validation_batches(cell: Cell) -> int:
    """How many there were in earlier versions, whose keys do not say."""
    if cell.stopping is None:
        return 0
    held = cell.source().sizes()["validation"] // cell.stream.batch_size
    return cell.stopping.batches or min(cell.trajectory_batches, 10, held)


def validation_edits(cell: Cell) -> list[Edit]:
    """The stream that training is validated on, of the validation pool whatever is scored."""
    n = validation_batches(cell) * cell.stream.batch_size
    return cell.source().draw("validation", n, seed=cell.training_seed)


def knowing(cell: Cell, path: str) -> Cell:
    """The cell whose model was asked which real facts it knows, with the file of its answers.

    What was found out about the cell before still holds, but for what it is scored on.
    """
    found = replace(cell, known=path)
    known = vars(found)
    of_edits = (read_not_measured, read_partly_measured)
    stale = {*known, *(f"_{__name__}.{find.__name__}" for find in of_edits)}
    known.update({k: v for k, v in vars(cell).items() if k not in stale})
    return found


@once
def read_not_measured(cell: Cell) -> dict[str, str]:
    """What the grid asks for and the stream's edits have nothing for → why."""
    n = min(cell.n_edits, available_edits(cell))  # fewer, where the data is too short to run
    edits = cell.source().draw(cell.dataset.split, n, seed=cell.seed)
    return not_measured(edits, [protocol(name) for name in cell.protocols], cell.measurements)


@once
def read_partly_measured(cell: Cell) -> dict[str, int]:
    """Of how many of the scored edits each score is, where some have it and some have nothing for
    it; beside that `edits`, how many are scored. Empty where all have both."""
    n = min(cell.n_edits, available_edits(cell))
    edits = cell.source().draw(cell.dataset.split, n, seed=cell.seed)
    scored = [edits[place] for place in cell.scored_places if place < n]
    found = {
        "generalization": sum(bool(edit.rephrases) for edit in scored),
        "specificity": sum(bool(edit.locality) for edit in scored),
    }
    part = {name: count for name, count in found.items() if 0 < count < len(scored)}
    return {**part, "edits": len(scored)} if part else {}


@once
def read_quantisation(cell: Cell) -> Quantised | None:
    """How the checkpoint's weights are packed; None where they are plain, or there is none."""
    checkpoint = cell.model.checkpoint
    # The hub need not be asked what a published model is.
    if checkpoint is None or cell.published is not None:
        return None
    if gguf_reference(checkpoint) is not None:
        return None  # dequantised before it is loaded
    return quantised(read_config(cached(checkpoint) or fetch_description(checkpoint)))


@once
def read_corpus(cell: Cell) -> CorpusMetadata:
    """The corpus of the cell's key covariance: its hash, its documents and a sample of them."""
    return corpus_metadata(cell.corpus, cell.statistics.documents, own_world(cell))


def own_world(cell: Cell) -> World | None:
    """The world that the cell's model was trained on; None for a checkpoint."""
    return None if cell.model.checkpoint is not None else cell.world()


def open_eval_data(cell: Cell) -> EvalData:
    """What the cell's measurements look at."""
    return load_eval_data(cell.material, cell.measurements, own_world(cell))


def read_metadata(cell: Cell) -> dict[str, Any]:
    """What results should say of a cell beside its identity: files, weights, what has no data."""
    found: dict[str, Any] = {}
    if cell.preset_setting is not None:
        found["preset"] = {"name": cell.model.preset, "settings": cell.preset_setting.origin}
    if isinstance(source := cell.source(), FileEditSource):
        found["data_files"] = dict(source.file_hashes)
    if absent := read_not_measured(cell):
        found["not_measured"] = absent
    if part := read_partly_measured(cell):
        found["partly_measured"] = part
    if cell.model.checkpoint is not None and (known := weight_facts(cell.model.checkpoint)):
        found["weights"] = known
    return found
