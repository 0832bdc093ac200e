"""Training of a hypernetwork to its limit, or until a validation stream gains no more; resumable.

    training = Training(editor, draw, validate=ValidationStream(editor, edits, batch_size))
    for event in training.run():
        ...  # after every batch and validation; `training.state_dict()` may be saved here

An editor that stops early is validated before the first training step, every few steps, and after
the last one. The state with the best score is kept, and put back when the training ends. Where its
configuration searches steps (`step_search`), the best state is then validated with its learned
steps multiplied by each of some factors, and keeps the best of them; where that is the
smallest or the largest, and not the steps as learned, it goes on beyond.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rledit.editors.base import State, TrainableEditor, prefixed, unprefixed
from rledit.finite import NonFiniteError, require_finite
from rledit.tokenization import EditBatch
from rledit.validation import Validation

_BEST = "best."
MOST_BEYOND = 3
"""Factors that are tried beyond those listed, where the best is the last on its side."""

Draw = Callable[[int], Sequence[Sequence[EditBatch]]]
"""Training step, counted from 0 → its trajectories, the same for the same step."""
Validate = Callable[[TrainableEditor, int], Validation]
Ending = Literal["limit", "patience"]


@dataclass(frozen=True, kw_only=True)
class StepTrial:
    """The best state, validated with its learned steps multiplied by a factor.

    Attributes:
        factor: The factor; 1: as learned.
        validation: What was found; None where such steps break the model.
        error: What broke; empty otherwise.
    """

    factor: float
    validation: Validation | None
    error: str = ""

    @property
    def score(self) -> float:
        """The validation's; below every other where there is none."""
        return -math.inf if self.validation is None else self.validation.score

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        found = None if self.validation is None else self.validation.record()
        return {"factor": self.factor, "validation": found, "error": self.error}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> StepTrial:
        """The trial that `record` tells of."""
        found = record["validation"]
        validation = None if found is None else Validation(**found)
        return cls(factor=record["factor"], validation=validation, error=record.get("error", ""))


@dataclass(frozen=True, kw_only=True)
class TrainingEvent:
    """A batch is trained on, a validation is done, or a factor on the steps is tried.

    Attributes:
        step: Training steps made.
        batches: Batches trained on, over all steps.
        validation: The validation, where the event is one.
        trial: The trial of a factor, where the event is one.
    """

    step: int
    batches: int
    validation: Validation | None = None
    trial: StepTrial | None = None


class Training:
    """One training of an editor.

    Args:
        editor: The editor, its model unedited.
        draw: Gives the trajectories of a training step.
        validate: Validates the editor; needed where its configuration stops early.

    Attributes:
        curve: What each training step measured.
        validations: All so far.
        step_trials: Factors on the steps that were tried so far, each with its validation.
        batches: Batches trained on.
        seconds: Wall time so far, validations included, over all attempts that contributed.

    Raises:
        ValueError: The editor stops early, and there is nothing to validate it.
    """

    def __init__(
        self, editor: TrainableEditor, draw: Draw, validate: Validate | None = None
    ) -> None:
        self.editor = editor
        self.stopping = type(editor).stopping_of(editor.config)
        self._draw = draw
        self._validate = validate
        if self.stopping is not None and validate is None:
            raise ValueError(
                f"editor {editor.name!r} trains until a validation stream gains no more (patience "
                f"{self.stopping.patience}): give validate, or set patience to 0"
            )
        self.curve: list[dict[str, float]] = []
        self.validations: list[Validation] = []
        self.step_trials: list[StepTrial] = []
        self.batches = 0
        self.seconds = 0.0
        self._best: State = {}

    @property
    def step(self) -> int:
        """Training steps made."""
        return len(self.curve)

    @property
    def best(self) -> Validation | None:
        """The best validation so far; None before the first."""
        best: Validation | None = None
        for found in self.validations:
            if best is None or self._improves(found, best):
                best = found
        return best

    @property
    def patience_left(self) -> int | None:
        """Validations without improvement that there may be yet; None where none is made."""
        best = self.best
        if self.stopping is None or best is None:
            return None if self.stopping is None else self.stopping.patience
        since = sum(found.step > best.step for found in self.validations)
        return self.stopping.patience - since

    @property
    def ending(self) -> Ending | None:
        """Why the training has ended; None while it goes on."""
        if self._is_due():
            return None
        if self.patience_left is not None and self.patience_left <= 0:
            return "patience"
        return "limit" if self.step >= self.editor.train_steps else None

    @property
    def best_trial(self) -> StepTrial | None:
        """The factor with the highest score so far, and 1 before others that are no better.

        None before training has ended, and where no steps are searched.
        """
        if not self._searches or self.ending is None or self.best is None:
            return None
        learned = StepTrial(factor=1.0, validation=self.best)
        return max((learned, *self.step_trials), key=lambda trial: trial.score)

    @property
    def step_trials_left(self) -> tuple[float, ...]:
        """Factors that are still to be tried, as far as is known; 1 is known from training."""
        tried = {1.0, *(trial.factor for trial in self.step_trials)}
        factors = () if self.stopping is None else self.stopping.step_search
        listed = tuple(factor for factor in factors if factor not in tried)
        return listed or self._beyond(sorted(tried), len(tried - {1.0, *factors}))

    def _beyond(self, tried: Sequence[float], n_beyond: int) -> tuple[float, ...]:
        """The next factor of the same ratio, where the best of those tried is their last.

        The steps as learned are no reason to look further: that side may not have been asked for.
        """
        best = self.best_trial
        if best is None or best.factor == 1 or n_beyond >= MOST_BEYOND:
            return ()
        ends = {tried[0]: tried[1], tried[-1]: tried[-2]}
        if best.factor not in ends:
            return ()
        found = float(f"{best.factor * best.factor / ends[best.factor]:.4g}")
        return () if found in tried else (found,)

    @property
    def _searches(self) -> bool:
        return self.stopping is not None and bool(self.stopping.step_search)

    def seconds_left(self, total: int) -> float | None:
        """Seconds to its limit, as long as batches, validations and trials of steps took so far.

        A training that may end before its limit takes so long at the most, but for factors beyond
        those that are listed.

        Args:
            total: Batches that it is trained on up to its limit.

        Returns:
            None before it was trained on a batch, or validated where it is to be.
        """
        checks = [found.seconds for found in self.validations]
        checks += [t.validation.seconds for t in self.step_trials if t.validation is not None]
        left = 0.0
        if self.ending is None:
            if not self.batches or (self.stopping is not None and not checks):
                return None
            left = (total - self.batches) * (self.seconds - sum(checks)) / self.batches
        if checks:
            due = len(self.step_trials_left) if self._searches else 0
            due += self._validations_left() if self.ending is None else 0
            left += due * sum(checks) / len(checks)
        return left

    def _validations_left(self) -> int:
        """Validations up to its limit."""
        assert self.stopping is not None
        first = self.step + (not self._is_due())
        every, last = self.stopping.validate_every, self.editor.train_steps
        return sum(step % every == 0 or step == last for step in range(first, last + 1))

    def run(self) -> Iterator[TrainingEvent]:
        """Train from where it is to the end, put the best state back, and search its steps.

        Who leaves before has an editor in the middle of its training.

        Raises:
            NonFiniteError: A loss, a gradient or a score is not finite; names the batch.
        """
        while self.ending is None:
            if self._is_due():
                assert self._validate is not None
                began = time.perf_counter()
                found = self._validate(self.editor, self.step)
                if self.best is None or self._improves(found, self.best):
                    self._best = {k: v.cpu() for k, v in self.editor.state_dict().items()}
                self.validations.append(found)
                self.seconds += time.perf_counter() - began
                yield TrainingEvent(step=self.step, batches=self.batches, validation=found)
            else:
                yield from self._train_step()
        if self._best:
            self.editor.load_state_dict(self._best)
        yield from self._search_steps()

    def _search_steps(self) -> Iterator[TrainingEvent]:
        """Validate the best state with its steps scaled, and leave it with the best of them.

        A factor that breaks the model is not chosen. Among ranks it ends the training: not all of
        them need have seen it break, and those wait.
        """
        if self.best is None or not self._searches:
            return
        assert self._validate is not None
        while left := self.step_trials_left:
            factor = left[0]
            began = time.perf_counter()
            self._scale_best(factor)
            try:
                found = self._validate(self.editor, self.best.step)
                trial = StepTrial(factor=factor, validation=found)
            except NonFiniteError as error:
                if self.editor.model.ranks.size > 1:
                    raise error.at(f"step_search, steps times {factor:g}") from None
                trial = StepTrial(factor=factor, validation=None, error=str(error))
            self.step_trials.append(trial)
            self.seconds += time.perf_counter() - began
            yield TrainingEvent(step=self.step, batches=self.batches, trial=trial)
        assert self.best_trial is not None
        self._scale_best(self.best_trial.factor)

    def _scale_best(self, factor: float) -> None:
        """Give the editor the best state, its steps multiplied."""
        self.editor.load_state_dict(self._best)
        if factor != 1:
            self.editor.scale_steps(factor)

    def _train_step(self) -> Iterator[TrainingEvent]:
        began = time.perf_counter()
        trajectories = self._draw(self.step)
        # A step that was saved half-way goes on: what is done of it is counted already.
        per_step = sum(len(batches) for batches in trajectories)
        before = self.step * per_step
        for event in self.editor.train_batches(*trajectories):
            self.batches = before + event.done
            if event.metrics is not None:
                self.curve.append(self._finite(event.metrics) | self.editor.training_measures)
            self.seconds += time.perf_counter() - began
            yield TrainingEvent(step=self.step, batches=self.batches)
            began = time.perf_counter()

    def _is_due(self) -> bool:
        """Whether a validation comes next."""
        if self.stopping is None or (self.validations and self.validations[-1].step == self.step):
            return False
        last = self.step >= self.editor.train_steps
        return last or self.step % self.stopping.validate_every == 0

    def _improves(self, found: Validation, best: Validation) -> bool:
        assert self.stopping is not None
        gain = found.score - best.score
        return gain > 0 and gain >= self.stopping.min_improvement

    def _finite(self, metrics: dict[str, float]) -> dict[str, float]:
        """What a training step measured, if all of it is numbers."""
        try:
            require_finite(metrics, "what is measured of the training")
        except NonFiniteError as error:
            raise error.at(f"training step {self.step + 1}") from None
        return metrics

    def state_dict(self) -> State:
        """Everything that the training goes on with, as tensors; every rank makes this call."""
        return self.editor.training_state_dict() | prefixed(_BEST, self._best)

    def record(self) -> dict[str, Any]:
        """Everything else of it, as plain JSON."""
        return {
            "curve": self.curve,
            "seconds": self.seconds,
            "batches": self.batches,
            "validations": [found.record() for found in self.validations],
            "step_trials": [trial.record() for trial in self.step_trials],
        }

    def load(self, state: State, record: Mapping[str, Any]) -> None:
        """Put a saved training back: what `state_dict` and `record` gave."""
        self._best = unprefixed(_BEST, state)
        own = {key: value for key, value in state.items() if not key.startswith(_BEST)}
        self.editor.load_training_state_dict(own)
        self.curve, self.seconds = list(record["curve"]), record["seconds"]
        self.batches = record["batches"]
        self.validations = [Validation(**found) for found in record.get("validations", ())]
        self.step_trials = [StepTrial.of_record(found) for found in record.get("step_trials", ())]
