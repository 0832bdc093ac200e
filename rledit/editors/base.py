"""What every editor is: it edits batch by batch, and its state can be saved and put back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from rledit.model import EditableModel
from rledit.tokenization import EditBatch

Need = Literal["train", "subject", "statistics"]
State = dict[str, Tensor]


class Editor(ABC):
    """Edits one model along a stream of batches.

    Attributes:
        name: Name in the registry, in configurations and in tables.
        Config: The editor's settings, a frozen keyword-only dataclass.
        needs: What the editor needs beside the edits of the batch.
        prefix_safe: Whether the first k batches of a longer stream give the same model as a
            stream of k batches, so that a longer run can answer for a shorter one.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    needs: ClassVar[frozenset[Need]] = frozenset()
    prefix_safe: ClassVar[bool] = True

    def __init__(self, model: EditableModel, config: Any) -> None:
        self.model = model
        self.config = config

    @property
    def group_size(self) -> int:
        """Samples per loss group when batches are tokenised for this editor."""
        return 4

    @property
    def sort_by_length(self) -> bool:
        """Whether each prompt kind of a batch is sorted by length on its own."""
        return False

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


class TrainableEditor(Editor):
    """An editor with a network to train before the stream."""

    needs: ClassVar[frozenset[Need]] = frozenset({"train"})

    @property
    @abstractmethod
    def train_steps(self) -> int:
        """Number of trajectories to train on."""

    @abstractmethod
    def trajectory_length(self, stream_length: int) -> int:
        """Batches per training trajectory for a stream of `stream_length` batches."""

    @abstractmethod
    def train_step(self, trajectory: Sequence[EditBatch]) -> dict[str, float]:
        """Train on one trajectory; the model's weights are the unedited ones before and after."""

    @abstractmethod
    def training_state_dict(self) -> State:
        """`state_dict` plus the optimiser: what a resumed training needs."""

    @abstractmethod
    def load_training_state_dict(self, state: State) -> None:
        """Put a saved training state back."""


def prefixed(prefix: str, state: State) -> State:
    """The state with a prefix before every key."""
    return {f"{prefix}{key}": value for key, value in state.items()}


def unprefixed(prefix: str, state: State) -> State:
    """The part of a state under a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
