"""Base class of editors: edits batch by batch, with a state that can be saved and restored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from rledit.editors.sphere import sphere_of
from rledit.instructions import Instruction
from rledit.lazy_torch import Tensor
from rledit.locate.covariance import KeyCovariance
from rledit.locate.nullspace import NullSpace
from rledit.model import EditableModel
from rledit.records import Edit, Probe
from rledit.step_size import known_step
from rledit.tokenization import EditBatch, Encoder, Order

Need = Literal["train", "subject", "statistics", "output_gradients", "training_data", "texts"]
TargetModules = Literal["any", "down", "one_down"]
Work = Literal["none", "moment", "trained", "tuned", "located", "remembered"]
Check = Literal["reference", "properties"]
"""What a method is held against beside recorded numbers of its release: a plain computation of its
equations, or properties that they have."""
State = dict[str, Tensor]
Texts = Callable[[], Sequence[Sequence[int]]]
"""Gives the token ids of the texts that key covariance is of."""


class TrainingData(Protocol):
    """Hands out batches of the train split while a stream runs."""

    def __call__(self, n_batches: int, seed: int, /) -> Sequence[EditBatch]:
        """`n_batches` batches of the stream's batch size, the same for the same arguments."""
        ...


class Editor(ABC):
    """Edits one model along a stream of batches.

    Attributes:
        name: Name in the registry, in configurations and in tables.
        checked: What this method, and not only one that it builds on, is held against, with the
            test that does it (of `tests/unit`): said on the page of what works with what.
        Config: The editor's settings, a frozen keyword-only dataclass.
        needs: What the editor needs beside the edits of the batch, at most; `needs_of` tells what
            a configuration needs. `train`: a network trained before the stream; `subject`: edits
            with text and a subject; `statistics`: key covariance, see `load_covariance`;
            `output_gradients`: with it, the covariance of output gradients
            (`rledit.locate.output_gradients`); `training_data`: see `load_training_data`; `texts`:
            see `load_texts`.
        trains_on: Prompts beside the edits' own that its training learns from, at most;
            `trains_on_of` tells a configuration's. The edits of the train pool must have them,
            those of the stream need not.
        target_modules: Which linear layers can be edited: any, the ones that write into the
            residual stream (`down`), or exactly one of those.
        prefix_safe: Whether the first k batches of a longer stream give the same model as a
            stream of k batches, so that a longer run can answer for a shorter one. An editor
            that trains on a stream of its own length, or replays, is not.
        step_setting: Name of the setting that every shift is proportional to as long as nothing is
            trained, and that may be `auto` (see `rledit.calibration`); None where there is none.
        outlives_batch: Beginnings of the names in its state that a later batch of a ledger goes on
            from. Such a batch has the model as it is for W_0, and may outlive one that is taken
            back: what holds matrices of the stream, or would write again, has no place here.
        work_kind: What its time goes into, by which a plan reckons it: one solve from moments
            (`moment`), a hypernetwork (`trained`), fine-tuning (`tuned`), value vectors
            (`located`), or a memory beside the weights (`remembered`).
    """

    name: ClassVar[str]
    checked: ClassVar[Mapping[Check, str]] = {}
    Config: ClassVar[type]
    needs: ClassVar[frozenset[Need]] = frozenset()
    trains_on: ClassVar[frozenset[Probe]] = frozenset()
    target_modules: ClassVar[TargetModules] = "any"
    prefix_safe: ClassVar[bool] = False
    step_setting: ClassVar[str | None] = None
    work_kind: ClassVar[Work] = "moment"
    takes_projections: ClassVar[bool] = False
    outlives_batch: ClassVar[tuple[str, ...]] = ("moments.", "past.")

    def __init__(self, model: EditableModel, config: Any) -> None:
        if self.step_setting is not None:
            self.step_size = known_step(self.name, config, self.step_setting)
        self.model = model
        self.config = config
        self.sphere = sphere_of(model, config)
        self.looked_at: frozenset[int] | None = None

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[Need]:
        """What an editor of this configuration needs."""
        return cls.needs

    @classmethod
    def trains_on_of(cls, config: Any) -> frozenset[Probe]:
        """What the training of an editor of this configuration learns from."""
        return cls.trains_on

    @classmethod
    def skip_reason_of(cls, config: Any, encoder: Encoder) -> str | None:
        """Why an editor of this configuration cannot edit with a tokenizer; None where it can.

        Optional. It is asked before a model is loaded, and says what to do.
        """
        return None

    @classmethod
    def instruction_of(cls, config: Any) -> Instruction | None:
        """What edits' prompts are asked with, in editing as in scoring; None: as they are.

        Who opens a model for an editor gives it to `EditableModel`.
        """
        return None

    @classmethod
    def training_instructions_of(cls, config: Any) -> tuple[Instruction, ...]:
        """Those that training asks edits with: the stream's, unless an editor draws from others."""
        found = cls.instruction_of(config)
        return () if found is None else (found,)

    @contextmanager
    def asked_as_validated(self) -> Iterator[None]:
        """Edit and ask inside the context as a trained state, or a step, is chosen by.

        Optional: as in the stream, unless an editor keeps something of the stream from all choices.
        """
        yield

    def load_covariance(self, covariance: Mapping[str, KeyCovariance]) -> None:
        """Take the key covariance of the target modules' inputs, before the stream.

        Args:
            covariance: Edited linear → its moment on the unedited model; with what
                `output_gradients` asks for under names of its own.

        Raises:
            CovarianceError: One is missing or does not fit.
            ValueError: The editor needs none.
        """
        raise ValueError(f"editor {self.name!r} needs no key covariance")

    def load_projections(self, projections: Mapping[str, NullSpace]) -> None:
        """Take null-space projections in place of key covariance, before the stream.

        Args:
            projections: Edited linear → the projection of its inputs on the unedited model.

        Raises:
            CovarianceError: One is missing or does not fit.
            ValueError: The editor uses none.
        """
        raise ValueError(f"editor {self.name!r} uses no null-space projections")

    def load_training_data(self, draw: TrainingData) -> None:
        """Take the source of training batches that the editor draws from while it edits.

        Call it before the stream; it is asked for nothing before the first `edit`.

        Raises:
            ValueError: The editor needs none.
        """
        raise ValueError(f"editor {self.name!r} needs no training data during the stream")

    def load_texts(self, texts: Texts) -> None:
        """Take the source of the texts that key covariance is of.

        Call it before the stream; it is asked for nothing before the first `edit`.

        Raises:
            ValueError: The editor needs none.
        """
        raise ValueError(f"editor {self.name!r} needs no texts during the stream")

    def announce(self, looked_at: Sequence[int]) -> None:
        """Learn after which batches of the stream, counted from 1, the model will be looked at.

        Optional. It lets an editor that trains anew on all edits so far leave out the models that
        nobody looks at; without it, every one is made.
        """
        self.looked_at = frozenset(looked_at)

    @property
    def group_size(self) -> int:
        """Samples per loss group when batches are tokenised for this editor."""
        return 4

    @property
    def order(self) -> Order:
        """Order of a batch's samples, see `rledit.tokenization.Order`."""
        return "stream"

    def encode(self, edits: Sequence[Edit]) -> EditBatch:
        """Tokenise a batch of edits as this method takes it: its order and its loss groups."""
        return self.model.encoder.batch(edits, self.group_size, self.order)

    def encode_drawn(self, edits: Sequence[Edit]) -> EditBatch:
        """A batch of `load_training_data`, tokenised as far as this method looks at it."""
        return self.encode(edits)

    @classmethod
    def batch_problem(cls, config: Any, batch_size: int) -> str | None:
        """Why an editor of this configuration cannot take batches of a size; None where it can.

        Asked before a model is loaded.
        """
        return None

    @abstractmethod
    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Edit the model's weights with one batch.

        Returns:
            What was measured, by metric name (``shift_norm``, ``condition``, ...).
        """

    def state_dict(self) -> State:
        """Everything but the edited weights that the next `edit` depends on, as flat tensors."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Put a saved state back.

        Raises:
            ValueError: The state has keys this editor does not know.
        """
        if state:
            raise ValueError(f"editor {self.name!r} keeps no state, but got {sorted(state)}")


@dataclass(frozen=True, kw_only=True)
class BatchTrained:
    """A batch of a training step is done.

    Attributes:
        done: Batches of the step so far, over all its trajectories.
        metrics: What the step measured, once the optimiser has made it; None before.
    """

    done: int
    metrics: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When a training ends before its limit: it no longer gets better on a validation stream.

    Attributes:
        patience: Validations in a row without improvement that end it.
        validate_every: Training steps between two validations.
        min_improvement: Points that the score has to rise above the best one to count as better.
        batches: Batches of the validation stream; None: as many as there is good reason for.
        step_search: Factors that the learned steps are tried with once training has ended.
    """

    patience: int
    validate_every: int
    min_improvement: float = 0.0
    batches: int | None = None
    step_search: tuple[float, ...] = ()


class TrainableEditor(Editor):
    """An editor with a network to train before the stream."""

    needs: ClassVar[frozenset[Need]] = frozenset({"train"})

    @classmethod
    def stopping_of(cls, config: Any) -> Stopping | None:
        """When the training of a configuration ends early; None where it goes on to its limit."""
        return None

    @property
    def training_measures(self) -> dict[str, float]:
        """What a learning curve shows of the editor as it is, by name. Optional."""
        return {}

    def scale_steps(self, factor: float) -> None:
        """Multiply every learned step; for an editor whose training searches steps at its end."""
        raise NotImplementedError(f"editor {self.name!r} has no steps that could be searched")

    @contextmanager
    def edits_aside(self) -> Iterator[None]:
        """Edit inside the context as a stream after this training would, from its first batch.

        The context begins and ends with the unedited model, between two training steps, and leaves
        everything that training goes on with as it was.
        """
        saved = self.state_dict()
        try:
            yield
        finally:
            self.load_state_dict(saved)
            self.model.weights.restore()

    @property
    @abstractmethod
    def train_steps(self) -> int:
        """Training steps, each on `trajectories_per_step` trajectories; at most, if it may stop."""

    @property
    def trajectories_per_step(self) -> int:
        """Trajectories that `train_step` takes."""
        return 1

    @abstractmethod
    def trajectory_length(self, stream_length: int) -> int:
        """Batches per training trajectory for a stream of `stream_length` batches."""

    def trajectory_batches(self, stream_length: int, batch_size: int) -> int:
        """Batches per training trajectory, where it depends on their size as well.

        Optional: `trajectory_length`, unless an editor says otherwise.
        """
        return self.trajectory_length(stream_length)

    def encode_training(self, edits: Sequence[Edit], lot: str) -> EditBatch:
        """Tokenise a batch of edits to train on; as `encode` does, unless an editor says otherwise.

        Args:
            edits: The edits.
            lot: Names the draw, for an editor that draws lots.
        """
        return self.encode(edits)

    @abstractmethod
    def train_step(self, *trajectories: Sequence[EditBatch]) -> dict[str, float]:
        """Train on trajectories; the model's weights are the unedited ones before and after."""

    def train_batches(self, *trajectories: Sequence[EditBatch]) -> Iterator[BatchTrained]:
        """`train_step`, batch by batch, so that it can be shown, saved and gone on with.

        Optional: without it, a step is saved and reported as a whole. After each event
        `training_state_dict` holds the step as far as it is; where such a state was loaded, the
        same trajectories go on from there. The weights are the unedited ones after the last event;
        who leaves earlier restores them.

        Yields:
            An event per batch, the last one with the metrics of the step.
        """
        metrics = self.train_step(*trajectories)
        yield BatchTrained(done=sum(len(batches) for batches in trajectories), metrics=metrics)

    @abstractmethod
    def training_state_dict(self) -> State:
        """`state_dict` plus the optimiser, and the step under way: what a resumed training needs.

        Every rank of a sharded model makes this call.
        """

    @abstractmethod
    def load_training_state_dict(self, state: State) -> None:
        """Put a saved training state back."""


def prefixed(prefix: str, state: State) -> State:
    """The state with a prefix before every key."""
    return {f"{prefix}{key}": value for key, value in state.items()}


def unprefixed(prefix: str, state: State) -> State:
    """The part of a state under a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
