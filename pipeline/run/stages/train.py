"""Stage that trains a hypernetwork once for all cells that share it; resumable at every batch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.plan.cache_names import trained_name
from pipeline.plan.cells import Cell
from pipeline.plan.fingerprint import identity_of
from pipeline.run.cache import Cache
from pipeline.run.gang import SINGLE_PROCESS, Gang
from pipeline.run.reporting import Report
from pipeline.run.resume import StateFolder, load_together, write_tensors
from pipeline.run.stages.calibrated import settings_with_step
from pipeline.run.stages.prepare import open_model
from rledit.editors import Editor, TrainableEditor, editor_class
from rledit.finite import NonFiniteError, require_finite
from rledit.tokenization import EditBatch

SAVE_EVERY_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained editor state.

    Attributes:
        state: What `Editor.load_state_dict` takes.
        seconds: Wall time of training, over all attempts that contributed.
        curve: One mapping of metrics per optimiser step.
    """

    state: dict[str, Tensor]
    seconds: float
    curve: list[dict[str, float]]


def require_trained(cell: Cell, cache: Cache) -> Path:
    """The cell's trained network, which the task before has put into the cache.

    Raises:
        FileNotFoundError: It is not there: without it, the editor would be an untrained one.
    """
    path = cache.file(trained_name(cell))
    if path is None:
        raise FileNotFoundError(
            f"{cache.storage} has no {trained_name(cell)}, which has been trained; is that path "
            "the same storage on every node? Run the same command again to train what is missing"
        )
    return path


def train(
    cell: Cell, model_folder: Path, cache: Cache, report: Report, gang: Gang = SINGLE_PROCESS
) -> Path | None:
    """Train the cell's network unless it lies in the cache.

    Returns:
        Its file; None on the ranks that do not lead.

    Raises:
        NonFiniteError: A loss, a gradient or the network is not finite; names the batch.
    """
    name = trained_name(cell)
    found = cache.file(name) if gang.is_rank_zero else None
    if gang.broadcast(found is not None):
        if found is not None:
            cache.publish(name)
        return found
    model = open_model(cell, model_folder, gang)
    editor = editor_class(cell.editor.editor)(model, settings_with_step(cell, cache))
    if not isinstance(editor, TrainableEditor):
        raise TypeError(f"{cell.path}: editor {cell.label!r} has nothing to train")
    folder = StateFolder(cache.storage.join(*name.split("/")[:-1], Path(name).stem + ".progress"))
    curve: list[dict[str, float]] = []
    seconds = 0.0
    saved = load_together(folder, gang)
    if saved is not None:
        editor.load_training_state_dict(saved[0])
        curve, seconds = saved[1]["curve"], saved[1]["seconds"]
    length = editor.trajectory_length(cell.stream.n_batches)
    per_step = length * editor.trajectories_per_step
    total = editor.train_steps * per_step
    done = len(curve) * per_step
    if saved is not None:
        done = saved[1].get("batches", done)  # of an earlier release, a state has none
    report("train", done, total)
    last_save, took = time.perf_counter(), 0.0
    for step in range(len(curve), editor.train_steps):
        began = time.perf_counter()
        for event in editor.train_batches(*trajectories(cell, editor, step)):
            seconds += time.perf_counter() - began
            done = step * per_step + event.done
            if event.metrics is not None:
                curve.append(_finite(event.metrics, step))
            report("train", done, total)
            # A state holds networks and matrices: of a large model, saving takes its time too.
            wait = SAVE_EVERY_SECONDS * max(1.0, took)
            if gang.broadcast(time.perf_counter() - last_save > wait):
                last_save = time.perf_counter()
                # Every rank reads the weights, which a sharded model has to gather.
                state = editor.training_state_dict()
                if gang.is_rank_zero:
                    metadata = {"curve": curve, "seconds": seconds, "batches": done}
                    folder.save(state, metadata, version=done)
                took = time.perf_counter() - last_save
                last_save += took
            began = time.perf_counter()
    state = {k: v.cpu().contiguous() for k, v in editor.state_dict().items()}
    _require_numbers(state, f"the network trained for {cell.label}")
    if not gang.is_rank_zero:
        return None
    metadata = {"seconds": seconds, "curve": curve, "identity": identity_of(cell)}
    path = cache.folder / name
    write_tensors(path, state, {"facts": json.dumps(metadata)})
    cache.publish(name)
    folder.clear()
    return path


def _finite(metrics: dict[str, float], step: int) -> dict[str, float]:
    """What an optimiser step measured, if all of it is numbers."""
    try:
        require_finite(metrics, "what is measured of the training")
    except NonFiniteError as error:
        raise error.at(f"training, optimiser step {step + 1}") from None
    return metrics


def _require_numbers(state: Mapping[str, Tensor], what: str) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NonFiniteError(f"{what} is not finite: {name} holds entries that are no numbers")


def trajectories(cell: Cell, editor: TrainableEditor, step: int) -> list[Sequence[EditBatch]]:
    """The training trajectories of an optimiser step: fresh edits of the train pool."""
    count = editor.trajectories_per_step
    length = editor.trajectory_length(cell.stream.n_batches)
    seeds = range(step * count, (step + 1) * count)
    return [training_batches(cell, editor, length, seed) for seed in seeds]


def training_batches(cell: Cell, editor: Editor, n: int, seed: int) -> list[EditBatch]:
    """`n` batches of the train pool, the same for the same cell seed and `seed`."""
    size = cell.stream.batch_size
    # Draws of different cell seeds must differ; the number of steps fits easily below the stride.
    edits = cell.source().draw("train", n * size, seed=cell.seed * 1_000_003 + seed)
    return [editor.encode(edits[i * size : (i + 1) * size]) for i in range(n)]


def load_trained(path: Path) -> Trained:
    """Read a trained network."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["facts"])
    state = load_file(path)
    _require_numbers(state, f"{path}: the trained network (delete the file to train it again)")
    return Trained(state=state, seconds=metadata["seconds"], curve=metadata["curve"])
