"""MEND* and MALMEN*: the hypernetwork is trained again on the edited model as the stream goes on.

A network trained on the unedited model sees gradients it does not know once many edits have been
written (arXiv 2502.05759, section 5). Every few batches these variants draw batches of the train
split and go on training, each batch being edited on the model as it is now, and taken back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from rledit.editors.base import Need, State, TrainingData
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.malmen import MALMENConfig
from rledit.editors.mend import MENDConfig
from rledit.editors.own_prefixes import fresh_prefix_cache
from rledit.lazy_torch import torch
from rledit.model import EditableModel
from rledit.reward import KLReference, Reward
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """Settings of retraining.

    Attributes:
        retrain_every: Batches of the stream between two retrainings.
        retrain_batches: Training batches, and optimiser steps, of each.
        kl_reference: The model to stay close to is the edited one.
    """

    retrain_every: int = 10
    retrain_batches: int = 10
    kl_reference: KLReference | None = "previous"


@dataclass(frozen=True, kw_only=True)
class MALMENStarConfig(Retraining, MALMENConfig):
    """MALMEN's settings, with retraining."""


@dataclass(frozen=True, kw_only=True)
class MENDStarConfig(Retraining, MENDConfig):
    """MEND's settings, with retraining."""


class RetrainedEditor(HypernetworkEditor):
    """A hypernetwork editor that goes on training along the stream."""

    config: MALMENStarConfig | MENDStarConfig
    needs: ClassVar[frozenset[Need]] = frozenset({"train", "training_data"})

    def __init__(self, model: EditableModel, config: MALMENStarConfig | MENDStarConfig) -> None:
        super().__init__(model, config)
        if config.retrain_every < 1 or config.retrain_batches < 1:
            raise ValueError("retrain_every and retrain_batches must be at least 1")
        self._draw: TrainingData | None = None
        self._edited = 0
        self._aside = False

    def load_training_data(self, draw: TrainingData) -> None:
        """Take the source of the training batches."""
        self._draw = draw

    @contextmanager
    def edits_aside(self) -> Iterator[None]:
        """Nothing is trained inside: what is looked at is the network that the stream begins with.

        Without this, a validation would draw training batches and begin Adam anew.
        """
        self._aside = True
        try:
            with super().edits_aside():
                yield
        finally:
            self._aside = False

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Retrain if it is time, then edit."""
        if self._aside:
            return super().edit(batch)
        trained: dict[str, float] = {}
        rounds, due = divmod(self._edited, self.config.retrain_every)
        if rounds and due == 0:
            with fresh_prefix_cache(self.model):
                trained = self._retrain(self._training_batches(rounds))
        self._edited += 1
        return super().edit(batch) | trained

    def _training_batches(self, rounds: int) -> Sequence[EditBatch]:
        if self._draw is None:
            raise ValueError(
                f"editor {self.name!r} trains during the stream; call load_training_data before it"
            )
        return self._draw(self.config.retrain_batches, self.config.seed + rounds)

    def _retrain(self, batches: Sequence[EditBatch]) -> dict[str, float]:
        """One optimiser step per batch, on the model as it is now; it is left as it was."""
        if self._mean is not None:
            # Training has ended: what goes on is what edits, as it is where it was loaded.
            self._mean.take_over()
            self._mean = None
        weights = self.model.weights
        now = weights.state_dict()
        past = {} if self.past_keys is None else self.past_keys.state_dict()
        # Each retraining starts its own Adam, so that a resumed stream equals a straight one.
        self.optimiser.state.clear()
        self.optimiser.zero_grad(set_to_none=True)
        loss = 0.0
        for batch in batches:
            reward = Reward(self.model, self._reward)
            loss += self._train_batch(batch, reward, 1.0)["loss"] / len(batches)
            self._clip()
            self._step()
            weights.load_state_dict(now)
            if self.past_keys is not None:
                self.past_keys.load_state_dict(past)
        return {"retrain_loss": loss}

    def state_dict(self) -> State:
        """Networks, moments and the place in the stream."""
        return super().state_dict() | {"edited": torch.tensor(self._edited)}

    def load_state_dict(self, state: State) -> None:
        """Put a saved state back."""
        super().load_state_dict(state)
        self._edited = int(state["edited"])


class MENDStar(RetrainedEditor):
    """MEND, retrained on the edited model."""

    name = "mend_star"
    checked = {"properties": "test_before_the_stream_a_starred_editor_is_the_plain_one"}
    Config = MENDStarConfig


class MALMENStar(RetrainedEditor):
    """MALMEN, retrained on the edited model."""

    name = "malmen_star"
    checked = {"properties": "test_before_the_stream_a_starred_editor_is_the_plain_one"}
    Config = MALMENStarConfig
