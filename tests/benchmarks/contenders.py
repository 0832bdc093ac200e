"""The three contenders of a step: the dense reference implementation, the fast path, and the bare
passes owed."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rledit.editors.rledit import RLEdit, RLEditConfig
from rledit.families import edited_modules, family_of, layer_index
from rledit.micro_batches import MicroBatch, make_micro_batches
from rledit.model import SINGLE_PASS_TOKENS, EditableModel, Execution
from rledit.reward import Reward, final_states
from rledit.tokenization import EditBatch, Sample
from tests.benchmarks.clock import Work
from tests.benchmarks.models import part
from tests.reference import ReferenceConfig, ReferenceRLEdit


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What is edited and how, alike for every contender.

    Attributes:
        modules: Target modules, see `rledit.families.edited_modules`.
        rank: Rank of the hypernetwork.
        depth: Backtracking depth k.
        execution: How the fast path and the floor run their passes.
    """

    modules: tuple[str, ...]
    rank: int
    depth: int = 10
    execution: Execution = field(default_factory=Execution)


class Contender(ABC):
    """Runs steps of one stream. `batches[: depth - 1]` only fill the backtracking window."""

    name: str

    def __init__(self, batches: Sequence[EditBatch], settings: StepSettings) -> None:
        self._batches = batches
        self._depth = settings.depth

    def follow(self, batches: Sequence[EditBatch]) -> None:
        """Go on with other batches, numbered from 0 again."""
        self._batches = batches

    def window(self, i: int) -> list[EditBatch]:
        """The batches scored at step i, newest first: a full window from the first step on."""
        newest = i + self._depth - 1
        return [self._batches[newest - j] for j in range(self._depth)]

    @abstractmethod
    def train(self, i: int) -> Work:
        """Prepare training step i: one batch inside a trajectory with a full window."""

    @abstractmethod
    def edit(self, i: int) -> Work:
        """Prepare editing with batch i of the stream: capture, propose, merge."""


class Reference(Contender):
    """Dense, micro-batches of 4, weights edited in place around each forward."""

    name = "reference"

    def __init__(self, model: Any, batches: Sequence[EditBatch], settings: StepSettings) -> None:
        super().__init__(batches, settings)
        names = edited_modules(model, settings.modules)
        config = ReferenceConfig(rank=settings.rank, depth=settings.depth)
        self.editor = ReferenceRLEdit(copy.deepcopy(model), names, config)

    def train(self, i: int) -> Work:
        """A step of the trajectory; the window needs no preparation."""
        return lambda: self.editor.step(self.window(i))

    def edit(self, i: int) -> Work:
        """One batch written into the model."""
        return lambda: self.editor.edit(self._batches[i])


class _Stepped(RLEdit):
    """RLEdit, one batch of a trajectory at a time."""

    def begin(self) -> Reward:
        return Reward(self.model, self._reward)

    def step(self, batch: EditBatch, reward: Reward) -> dict[str, float]:
        return self._train_batch(batch, reward, 1.0)


class Fast(Contender):
    """The library's RLEdit: frozen prefix, low-rank dual form, pooled micro-batches."""

    name = "ours"

    def __init__(self, model: Any, batches: Sequence[EditBatch], settings: StepSettings) -> None:
        super().__init__(batches, settings)
        self.model = EditableModel(model, None, settings.modules, settings.execution)
        config = RLEditConfig(
            modules=settings.modules,
            initial_step=ReferenceConfig.initial_step,
            rank=settings.rank,
            depth=settings.depth,
        )
        self.editor = _Stepped(self.model, config)
        self.reward = self.editor.begin()
        for batch in batches[: settings.depth - 1]:
            self.editor.edit(batch)
            self.reward.observe(batch)
            final_states(self.model, batch.equivalent.samples)

    def train(self, i: int) -> Work:
        """A step on a batch never seen before; the older ones lie in the window."""
        return lambda: self.editor.step(self.window(i)[0], self.reward)

    def edit(self, i: int) -> Work:
        """One batch never seen before, written into the model."""
        return lambda: self.editor.edit(self._batches[i])


class Floor(Contender):
    """The bare passes that the mathematics owes, and nothing else.

    Training step: forward of the edit prompts through the whole model with backward down to the
    entrance of the first edited layer, then forward and backward of all reward prompts of the
    window from that entrance up, starting at hidden states computed beforehand. Edit step: the
    edit prompts alone. Plain Hugging Face modules in the micro-batches that the fast path uses; the
    output embedding and the cross-entropy that starts the backward see answer positions only.
    Every layer from the first edited one up runs whole (the fast path replays that layer's
    attention and runs the last MLP on answer positions only, so it may fall below the floor).
    There are no references, no keys, no shift, no hypernetwork, no merge, and no pass of the
    newest batch's prompts below the first edited layer.
    """

    name = "floor"

    def __init__(self, model: Any, batches: Sequence[EditBatch], settings: StepSettings) -> None:
        super().__init__(batches, settings)
        family = family_of(model)
        first = min(layer_index(family, m) for m in edited_modules(model, settings.modules))
        n_layers = len(model.get_submodule(family.layers))
        self._device = model.device
        self._execution = settings.execution
        self._below = part(model, range(first), final_norm=False)
        self._above = part(model, range(first, n_layers), final_norm=True)
        self._head = model.get_output_embeddings()

    def train(self, i: int) -> Work:
        """Hidden states of the reward prompts are made here, untimed."""
        window = self.window(i)
        reward = [s for b in window for phase in (b.equivalent, b.unrelated) for s in phase.samples]
        starts = [
            (micro_batch, self._entrance(micro_batch))
            for micro_batch in self._micro_batches(reward)
        ]
        edit = self._micro_batches(window[0].edit.samples, least=SINGLE_PASS_TOKENS)

        def work() -> None:
            self._whole(edit)
            for micro_batch, hidden in starts:
                self._upper(micro_batch, hidden)

        return work

    def edit(self, i: int) -> Work:
        """Forward of the edit prompts, backward to the first edited layer."""
        micro_batches = self._micro_batches(self._batches[i].edit.samples, least=SINGLE_PASS_TOKENS)
        return lambda: self._whole(micro_batches)

    def _micro_batches(self, samples: Iterable[Sample], least: int = 0) -> list[MicroBatch]:
        return make_micro_batches(tuple(samples), self._execution.tokens(self._device, least))

    def _whole(self, micro_batches: Sequence[MicroBatch]) -> None:
        for micro_batch in micro_batches:
            self._upper(micro_batch, self._entrance(micro_batch))

    @torch.no_grad()
    def _entrance(self, micro_batch: MicroBatch) -> Tensor:
        ids = micro_batch.input_ids().to(self._device)
        hidden: Tensor = self._below(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    def _upper(self, micro_batch: MicroBatch, hidden: Tensor) -> None:
        start = hidden.detach().requires_grad_()
        with torch.enable_grad():
            top = self._above(inputs_embeds=start, use_cache=False).last_hidden_state
            rows = top.flatten(0, 1)[micro_batch.rows.to(self._device)]
            loss = F.cross_entropy(self._head(rows).float(), micro_batch.labels.to(self._device))
        torch.autograd.grad(loss, start)
