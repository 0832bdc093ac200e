"""InstructEdit: MEND whose edit prompts carry an instruction (arXiv 2402.16123).

The update is MEND's. An instruction names the task of an edit and describes it; edit prompts carry
it where they are edited and where they are asked, unrelated prompts never. Each training example is
edited by itself on the unedited model, under one of nine descriptions, and the loss is taken of the
edit prompt, not of a rephrase.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rledit.editors.conventions import PAPER, Conventions, Recipe
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.mend import MENDConfig
from rledit.instructions import TASKS, TRAINED_ON, Instruction, instruction_of
from rledit.lazy_torch import Tensor
from rledit.model import EditableModel
from rledit.names import UnknownNameError
from rledit.records import Edit, Probe
from rledit.reward import Reward
from rledit.step_size import SettingError, Step
from rledit.tokenization import EditBatch, Phase


@dataclass(frozen=True, kw_only=True)
class InstructEditConfig(MENDConfig):
    """InstructEdit's settings: MEND's, an instruction, and its release's training.

    Attributes:
        task: Whose instructions: `facts`, `counterfact`, `zsre`, `fever` or `recent`. In a grid
            that leaves it out, the one of the dataset's schema, else `facts`.
        instruction: Which of the task's ten descriptions prompts carry in the stream and its
            scores: 1 to 9 are trained on, 10 is not, 0: no instruction anywhere. Under 10, what is
            chosen on the validation pool (a trained state, a step) is chosen under 1.
        drop_zero_rows: Leave rows out whose input or gradient is all zero, which normalised are
            zero no more.
        edit_coef: Weight of the loss on edit prompts.
        accumulation: Examples of an optimiser step while training, each edited by itself. 0: a
            batch of the stream's size is edited at once, with a step for each, as MEND trains.
    """

    task: str = "facts"
    instruction: int = 1
    drop_zero_rows: bool = True
    edit_coef: float = 0.1
    accumulation: int = 2
    initial_step: Step = 1e-4
    max_grad_norm: float = 100.0
    update_moments_while_editing: bool = False

    # Its release departs in nothing that is a convention of ours.
    official: ClassVar[Conventions] = PAPER
    published: ClassVar[Mapping[str, Any]] = {
        **MENDConfig.published,
        "meta_lr": 1e-6,
        "scalar_lr_factor": 100.0,
    }

    @classmethod
    def recipe_settings(cls, recipe: Recipe) -> dict[str, Any]:
        """MEND's, but for the loss on edited prompts, which is all that it trains on already, and
        for variants of the edits, which would put rephrases in their place."""
        return {**super().recipe_settings(recipe), "prompt_coef": 0.0, "augment": False}

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            instruction_of(self.task, self.instruction)
        except UnknownNameError as error:
            raise SettingError("task", str(error)) from None
        except ValueError as error:
            raise SettingError("instruction", str(error)) from None


class InstructEdit(HypernetworkEditor):
    """MEND with instructions."""

    name = "instructedit"
    checked = {"properties": "test_an_empty_template_is_mend_bit_by_bit"}
    Config = InstructEditConfig
    config: InstructEditConfig
    trains_on: ClassVar[frozenset[Probe]] = frozenset({"locality prompt"})

    @classmethod
    def instruction_of(cls, config: InstructEditConfig) -> Instruction | None:
        """The one of the stream and its scores."""
        return instruction_of(config.task, config.instruction)

    @classmethod
    def training_instructions_of(cls, config: InstructEditConfig) -> tuple[Instruction, ...]:
        """The task's, but for the held-out one."""
        return TASKS[config.task].trained_on if config.instruction else ()

    def __init__(self, model: EditableModel, config: InstructEditConfig) -> None:
        super().__init__(model, config)
        self._reward = replace(self._reward, equivalent_coef=config.edit_coef)
        self._asks = self.instruction_of(config)

    def counted(self, keys: Tensor, values: Tensor) -> Tensor | None:
        """(..., n) bool, rows whose input and gradient are not all zero."""
        if not self.config.drop_zero_rows:
            return None
        return (keys != 0).any(-1) & (values != 0).any(-1)

    @contextmanager
    def asked_as_validated(self) -> Iterator[None]:
        """Ask under a description that training draws from: the held-out one chooses nothing."""
        if self.config.instruction <= TRAINED_ON:
            yield
            return
        before, self._asks = self._asks, instruction_of(self.config.task, 1)
        try:
            with self.model.asking(self._asks):
                yield
        finally:
            self._asks = before

    def encode(self, edits: Sequence[Edit]) -> EditBatch:
        """Tokenise a batch of edits with the instruction.

        Raises:
            ValueError: The model asks edits otherwise, so that they would not be scored as they are
                edited.
        """
        wanted = self._asks
        if self.model.encoder.instruction != wanted:
            raise ValueError(
                f"editor {self.name!r} edits with the instruction {wanted}, and the model was "
                f"opened with {self.model.encoder.instruction}: pass instruction="
                "InstructEdit.instruction_of(config) to EditableModel"
            )
        return super().encode(edits)

    def encode_training(self, edits: Sequence[Edit], lot: str) -> EditBatch:
        """Tokenise edits to train on: a description by lot for each, and edit prompts to learn."""
        taught = TASKS[self.config.task].trained_on
        told = [replace(edit, prompt=self._told(edit, taught, lot), rephrases=()) for edit in edits]
        encoder = self.model.encoder.instructed(None)
        batch = encoder.batch(told, self.group_size, self.order)
        return replace(batch, equivalent=batch.edit, edits=tuple(edits))

    def _told(self, edit: Edit, taught: Sequence[Instruction], lot: str) -> str:
        if not self.config.instruction:
            return edit.prompt
        rng = random.Random(f"instruction/{self.config.seed}/{lot}/{edit.edit_id}")
        return rng.choice(taught).around(edit.prompt)

    def _steps_within(self, trajectory: Sequence[EditBatch], t: int) -> int:
        accumulation = self.config.accumulation
        return (len(trajectory[t].edit) - 1) // accumulation if accumulation else 0

    def _train_batch(self, batch: EditBatch, reward: Reward, weight: float) -> dict[str, float]:
        """Train on the examples of a batch; the last optimiser step of it is the caller's."""
        accumulation = self.config.accumulation
        if not accumulation:
            return super()._train_batch(batch, reward, weight)
        totals: dict[str, float] = {}
        examples = _one_by_one(batch)
        for k, example in enumerate(examples):
            if k:
                if k % accumulation == 0:
                    self._clip()
                    self._step()
                self.model.weights.restore()
                reward = self._new_reward()
            measured = super()._train_batch(example, reward, weight / accumulation)
            for name, value in measured.items():
                totals[name] = totals.get(name, 0.0) + value / len(examples)
        return totals


def _one_by_one(batch: EditBatch) -> list[EditBatch]:
    """The examples of a batch, each in a batch by itself."""

    def only(phase: Phase, i: int) -> Phase:
        return Phase(phase.samples[i : i + 1], 1)

    return [
        EditBatch(
            only(batch.edit, i),
            only(batch.equivalent, i),
            only(batch.unrelated, i),
            batch.edits[i : i + 1],
        )
        for i in range(len(batch.edit))
    ]
