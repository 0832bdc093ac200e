"""Stage that trains a hypernetwork once for all cells that share it; resumable at every batch."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from safetensors import safe_open

from pipeline.plan.cache_names import trained_name
from pipeline.plan.cell_data import validation_batches, validation_edits
from pipeline.plan.cell_keys import identity_of
from pipeline.plan.cells import Cell
from pipeline.plan.prefixes import training_store_choice
from pipeline.run.cache import Cache
from pipeline.run.rank_group import SINGLE_PROCESS, Gang
from pipeline.run.reporting import Report
from pipeline.run.resume import StateFolder, load_together, write_tensors
from pipeline.run.stages.calibrated import settings_with_step
from pipeline.run.stages.prefixes import open_store
from pipeline.run.stages.prepare import open_model
from rledit.augmentation import augmented
from rledit.editors import Editor, TrainableEditor, editor_class
from rledit.epochs import walk
from rledit.finite import NonFiniteError
from rledit.lazy_torch import Tensor
from rledit.records import Edit
from rledit.tokenization import EditBatch
from rledit.training import StepTrial, Training
from rledit.validation import Validation, ValidationStream

SAVE_EVERY_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained editor state.

    Attributes:
        state: What `Editor.load_state_dict` takes.
        seconds: Wall time of training, over all attempts that contributed.
        curve: One mapping of metrics per training step.
        validations: What was found of the network on the way, see `rledit.validation.Validation`.
        outcome: How a training that may end early has ended; empty of others.
    """

    state: dict[str, Tensor]
    seconds: float
    curve: list[dict[str, float]]
    validations: list[Validation] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)


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
    cell: Cell,
    model_folder: Path,
    cache: Cache,
    report: Report,
    gang: Gang = SINGLE_PROCESS,
    longer: Cell | None = None,
) -> Path | None:
    """Train the cell's network unless it lies in the cache.

    Args:
        longer: The cell whose training goes on where this one ends; None: nobody's.

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
    store = open_store(cell, model, cache, training_store_choice(cell))
    editor = editor_class(cell.editor.editor)(model, settings_with_step(cell, cache))
    if not isinstance(editor, TrainableEditor):
        raise TypeError(f"{cell.path}: editor {cell.label!r} has nothing to train")
    folder = _progress(cell, cache)
    training = Training(editor, TrainingPool(cell, editor), _validation(cell, editor))
    length = editor.trajectory_batches(cell.stream.n_batches, cell.stream.batch_size)
    per_step = length * editor.trajectories_per_step
    total = editor.train_steps * per_step
    saved = load_together(folder, gang)
    if saved is not None:
        # Of an earlier release, a state has no batches.
        training.load(saved[0], {"batches": len(saved[1]["curve"]) * per_step, **saved[1]})
    _report(report, training, total)
    last_save, took = time.perf_counter(), 0.0
    for _ in training.run():
        _report(report, training, total)
        # A state holds networks and matrices: of a large model, saving takes its time too.
        wait = SAVE_EVERY_SECONDS * max(1.0, took)
        if gang.broadcast(time.perf_counter() - last_save > wait):
            last_save = time.perf_counter()
            # Every rank reads the weights, which a sharded model has to gather.
            state = training.state_dict()
            if gang.is_rank_zero:
                folder.save(state, training.record(), version=_version(training))
            took = time.perf_counter() - last_save
            last_save += took
    if store is not None:
        store.prefixes.flush()
    state = {k: v.cpu().contiguous() for k, v in editor.state_dict().items()}
    _require_numbers(state, f"the network trained for {cell.label}")
    if longer is not None:
        _hand_on(training, longer, cache, gang)
    if not gang.is_rank_zero:
        return None
    metadata = {**training.record(), "identity": identity_of(cell), **_outcome(training)}
    metadata |= {} if store is None else {"prefix_store": store.facts}
    path = cache.folder / name
    write_tensors(path, state, {"facts": json.dumps(metadata)})
    cache.publish(name)
    folder.clear()
    return path


def _progress(cell: Cell, cache: Cache) -> StateFolder:
    """Where the state of the cell's training lies while it goes on."""
    *parents, file = trained_name(cell).split("/")
    return StateFolder(cache.storage.join(*parents, Path(file).stem + ".progress"))


def _hand_on(training: Training, longer: Cell, cache: Cache, gang: Gang) -> None:
    """Let a longer training begin where this one has ended, unless it has begun already."""
    folder = _progress(longer, cache)
    begun = bool(folder.metadata()) or cache.file(trained_name(longer)) is not None
    if gang.broadcast(gang.is_rank_zero and not begun):
        state = training.state_dict()  # every rank makes this call
        if gang.is_rank_zero:
            folder.save(state, training.record(), version=_version(training))


def _version(training: Training) -> int:
    """A number that grows with every event, so that ranks can tell one state from another."""
    return training.batches + len(training.validations) + len(training.step_trials)


def _validation(cell: Cell, editor: TrainableEditor) -> ValidationStream | None:
    """The stream of the validation pool that tells when the training has to end."""
    if not validation_batches(cell):
        return None
    loc_coef = getattr(cell.settings, "loc_coef", 1.0)
    return ValidationStream(editor, validation_edits(cell), cell.stream.batch_size, loc_coef)


def _outcome(training: Training) -> dict[str, Any]:
    """How a training that may end early has ended; nothing of others."""
    best = training.best
    if best is None:
        return {}
    count = training.editor.trajectories_per_step
    return {
        "training": {
            "ended_by": training.ending,
            "trajectories": training.step * count,
            "batches": training.batches,
            "best_step": best.step,
            "best_trajectory": best.step * count,
            "best_score": best.score,
            **_step_search(training),
        }
    }


def _step_search(training: Training) -> dict[str, Any]:
    """Which factor the learned steps were multiplied by, and what each would have given."""
    chosen = training.best_trial
    if chosen is None or training.best is None:
        return {}
    learned = StepTrial(factor=1.0, validation=training.best)
    tried = sorted([learned, *training.step_trials], key=lambda trial: trial.factor)
    return {
        "step_search": [_tried(trial) for trial in tried],
        "step_factor": chosen.factor,
        "step_factor_score": chosen.score,
    }


def _tried(trial: StepTrial) -> dict[str, Any]:
    """What a factor gave; a model that it broke has no score."""
    if trial.validation is None:
        return {"factor": trial.factor, "score": None, "error": trial.error}
    return {"factor": trial.factor, "score": trial.score}


def _report(report: Report, training: Training, total: int) -> None:
    """How far training is; of one that may end early, what its validations say as well."""
    left = training.seconds_left(total)
    if training.stopping is None:
        report("train", training.batches, total, "", left)
        return
    count = training.editor.trajectories_per_step
    parts = [f"trajectory {training.step * count} of at most {training.editor.train_steps * count}"]
    if (best := training.best) is not None:
        parts.append(
            f"validation {training.validations[-1].score:.1f} (best {best.score:.1f} at "
            f"{best.step * count}), patience {training.patience_left} of "
            f"{training.stopping.patience}"
        )
    if (chosen := training.best_trial) is not None:
        n, due = len(training.step_trials), len(training.step_trials_left)
        parts.append(
            f"steps tried with {n} of {n + due} factors (best {chosen.score:.1f} "
            f"at {chosen.factor:g})"
        )
    # Ended early, it is done all the same.
    batches = total if training.ending else training.batches
    report("train", batches, total, ", ".join(parts), left)


def _require_numbers(state: Mapping[str, Tensor], what: str) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NonFiniteError(f"{what} is not finite: {name} holds entries that are no numbers")


class TrainingPool:
    """Hands out the trajectories of a cell's training steps.

    Args:
        cell: The cell; its editor's `drawing` says how they come from the train pool.
        editor: Tokenises them.
    """

    def __init__(self, cell: Cell, editor: TrainableEditor) -> None:
        self._cell, self._editor = cell, editor
        self._in_epochs = getattr(cell.settings, "drawing", "independent") == "epochs"
        self._size = cell.stream.batch_size
        self._n = (
            editor.trajectory_batches(cell.stream.n_batches, cell.stream.batch_size) * self._size
        )
        self._walk = walk(self._epoch, self._n)
        self._next = 0  # trajectory that the walk gives next

    def __call__(self, step: int) -> list[Sequence[EditBatch]]:
        """The trajectories of a training step, the same for the same step."""
        if not self._in_epochs:
            return trajectories(self._cell, self._editor, step)
        count = self._editor.trajectories_per_step
        return [
            batches_of(self._editor, _varied(self._cell, self._edits(i), i), self._size, str(i))
            for i in range(step * count, (step + 1) * count)
        ]

    def _edits(self, i: int) -> list[Edit]:
        """The edits of a trajectory; a training that was resumed walks there first."""
        if i < self._next:
            self._walk, self._next = walk(self._epoch, self._n), 0
        for _ in range(i - self._next):
            next(self._walk)
        self._next = i + 1
        return next(self._walk)

    def _epoch(self, epoch: int) -> list[Edit]:
        """The whole pool in the order of an epoch, in whatever order the data is drawn."""
        source, seed = self._cell.source(), _seed(self._cell, epoch)
        edits = source.draw("train", source.sizes()["train"], seed=seed)
        return random.Random(f"epoch/{seed}").sample(edits, len(edits))


def trajectories(cell: Cell, editor: TrainableEditor, step: int) -> list[Sequence[EditBatch]]:
    """The training trajectories of an optimiser step: fresh edits of the train pool."""
    count = editor.trajectories_per_step
    length = editor.trajectory_batches(cell.stream.n_batches, cell.stream.batch_size)
    seeds = range(step * count, (step + 1) * count)
    return [_drawn(cell, editor, length, seed) for seed in seeds]


def training_batches(cell: Cell, editor: Editor, n: int, seed: int) -> list[EditBatch]:
    """`n` batches of the train pool, the same for the same training seed and `seed`."""
    return list(_drawn(cell, editor, n, seed))


def _drawn(cell: Cell, editor: Editor, n: int, seed: int) -> Sequence[EditBatch]:
    size = cell.stream.batch_size
    edits = cell.source().draw("train", n * size, seed=_seed(cell, seed))
    return batches_of(editor, _varied(cell, edits, seed), size, str(seed))


def _varied(cell: Cell, edits: Sequence[Edit], trajectory: int) -> Sequence[Edit]:
    """The edits of a trajectory as they are trained on: in variants, where the editor asks so."""
    if not getattr(cell.settings, "augment", False):
        return edits
    return augmented(edits, f"augment/{_seed(cell, trajectory)}")


def batches_of(
    editor: Editor, edits: Sequence[Edit], size: int, trajectory: str
) -> Sequence[EditBatch]:
    """Edits of a trajectory in batches of `size`, tokenised when they are looked at."""
    return _Batches(editor, edits, size, trajectory)


class _Batches(Sequence[EditBatch]):
    """Batches that are tokenised once somebody looks at them: a step may take the first alone."""

    def __init__(self, editor: Editor, edits: Sequence[Edit], size: int, trajectory: str) -> None:
        self._editor, self._trajectory = editor, trajectory
        self._parts = [edits[i : i + size] for i in range(0, len(edits), size)]
        self._encoded: dict[int, EditBatch] = {}

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, place: int) -> EditBatch: ...

    @overload
    def __getitem__(self, place: slice) -> list[EditBatch]: ...

    def __getitem__(self, place: int | slice) -> EditBatch | list[EditBatch]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        i = range(len(self))[place]
        if i not in self._encoded:
            self._encoded[i] = self._tokenised(i)
        return self._encoded[i]

    def _tokenised(self, i: int) -> EditBatch:
        if isinstance(self._editor, TrainableEditor):
            return self._editor.encode_training(self._parts[i], f"{self._trajectory}/{i}")
        return self._editor.encode_drawn(self._parts[i])


def _seed(cell: Cell, number: int) -> int:
    """Seed of a draw; those of different training seeds differ, as the stride holds all numbers."""
    return cell.training_seed * 1_000_003 + number


def load_trained(path: Path) -> Trained:
    """Read a trained network."""
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["facts"])
    state = load_file(path)
    _require_numbers(state, f"{path}: the trained network (delete the file to train it again)")
    return Trained(
        state=state,
        seconds=metadata["seconds"],
        curve=metadata["curve"],
        validations=[Validation(**found) for found in metadata.get("validations", ())],
        outcome=metadata.get("training", {}),
    )
