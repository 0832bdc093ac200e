"""Base class of WISE and MEMOIR, which train an edit behind templates by steps on one tensor."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from rledit.decoding import decode
from rledit.editors.base import Need, State, TrainingData
from rledit.editors.overlay_editor import OverlayEditor
from rledit.editors.own_prefixes import fresh_prefix_cache
from rledit.editors.repeated_passes import RepeatedPasses
from rledit.finite import require_finite
from rledit.lazy_torch import F, Tensor, torch
from rledit.locate.contexts import BARE, fill, make_contexts
from rledit.model import EditableModel
from rledit.records import Edit
from rledit.tokenization import EditBatch, Phase, Sample, TokenizationError

OPENERS = ("The", "Therefore", "Because", "I", "You")
LENGTHS = (5, 10)
"""Tokens of the texts that are written behind the openers."""
STOP_LOSS, STOP_CHANGE = 0.02, 1e-4
"""Training of an edit ends once its loss is under the first and has moved less than the second."""


class TemplatedEditor(OverlayEditor):
    """Trains every edit behind templates, with unrelated prompts of the train split at hand."""

    needs: ClassVar[frozenset[Need]] = frozenset({"training_data"})

    def __init__(self, model: EditableModel, config: Any) -> None:
        super().__init__(model, config)
        self._draw: TrainingData | None = None
        self._templates: tuple[str, ...] | None = config.contexts

    def load_training_data(self, draw: TrainingData) -> None:
        """Take the source of unrelated prompts."""
        self._draw = draw

    def write(self, batch: EditBatch) -> dict[str, float]:
        """Train the batch's edits into the memory, one after another."""
        if not batch.edits:
            raise TokenizationError(
                f"{self.name} puts prompts into templates and needs their text, but the batch "
                "holds only tokens"
            )
        if self._draw is None:
            raise ValueError(
                f"{self.name} compares with unrelated prompts while it edits; give them with "
                "load_training_data"
            )
        with fresh_prefix_cache(self.model):
            losses = [self.train(edit) for edit in batch.edits]
        return {"final_loss": sum(losses) / len(losses)}

    @abstractmethod
    def train(self, edit: Edit) -> float:
        """Write one edit; returns its last loss."""

    def encode_drawn(self, edits: Sequence[Edit]) -> EditBatch:
        """The edits as text alone: few of their prompts are looked at, see `unrelated`."""
        nothing = Phase((), self.group_size)
        return EditBatch(nothing, nothing, nothing, tuple(edits))

    def unrelated(self, number: int) -> Iterator[Sample]:
        """Unrelated prompts of the train split; other edits' prompts where it has none.

        Each is tokenised once somebody asks for it.

        Args:
            number: Another number, another draw.
        """
        assert self._draw is not None
        (batch,) = self._draw(1, number)
        if not batch.edits:  # made of tokens
            yield from batch.unrelated.samples or batch.edit.samples
            return
        encoder = self.model.encoder
        unrelated = [(e, x.prompt, x.answer) for e in batch.edits for x in e.locality[:1]]
        others = [(e, encoder.asked(e.prompt), e.target) for e in batch.edits]
        for edit, prompt, answer in unrelated or others:
            yield encoder.sample(prompt, answer, edit.source or edit.edit_id)

    def templated(self, edit: Edit) -> list[Sample]:
        """The edit's prompt with its target, bare first, then behind every template."""
        contexts = make_contexts(self._contexts())
        texts = [fill(template, edit.prompt)[0] for template in contexts.all]
        where = edit.source or edit.edit_id
        return [self.model.encoder.sample(text, edit.target, where) for text in texts]

    def _contexts(self) -> tuple[str, ...]:
        """The templates: those of the configuration, or what the unedited model writes."""
        if self._templates is None:
            lengths = [n for n in LENGTHS for _ in OPENERS]
            with self.model.weights.unedited():
                written = decode(self.model, OPENERS * len(LENGTHS), lengths)
            tokenizer = self.model.encoder.tokenizer
            self._templates = tuple(
                f"{opener} {_plain(tokenizer.decode(ids, skip_special_tokens=True))}. {BARE}"
                for opener, ids in zip(OPENERS * len(LENGTHS), written, strict=True)
            )
        return self._templates

    def likelihood(
        self, passes: RepeatedPasses, trained: Tensor, extra_tokens: int = 0
    ) -> tuple[float, Tensor]:
        """Mean loss over the samples' target tokens, and its gradient for a tensor, on every rank.

        Args:
            passes: The passes over the samples; the memory is told what answers them.
            trained: What the passes depend on.
            extra_tokens: Tokens without a loss that count in the mean.
        """
        model, samples = self.model, passes.samples
        total = torch.zeros((), dtype=torch.float64)
        gradient: Tensor | None = None
        n_tokens = sum(len(s.answer_ids) for s in samples) + extra_tokens
        for part in passes.parts:
            logits = passes.logits(part)
            with torch.enable_grad():
                loss = F.cross_entropy(logits, part.labels, reduction="sum") / n_tokens
                (own,) = torch.autograd.grad(loss, trained)
            total += float(loss.detach())
            gradient = own if gradient is None else gradient.add_(own)
        if gradient is None:  # a rank without prompts
            gradient = torch.zeros_like(trained)
        for whole in (total, gradient):
            model.ranks.all_reduce_(whole)
        require_finite({"edit_loss": float(total)}, "the loss of an edit", model, samples)
        return float(total), gradient

    def state_dict(self) -> State:
        """The memory, and the templates where they were written by the model."""
        text = json.dumps(self._templates or ()).encode()
        return {**super().state_dict(), "templates": torch.tensor(list(text), dtype=torch.uint8)}

    def load_state_dict(self, state: State) -> None:
        """Put a saved state back."""
        super().load_state_dict(state)
        templates = json.loads(bytes(state["templates"].tolist()))
        self._templates = tuple(templates) or self.config.contexts


def settled(losses: Sequence[float]) -> bool:
    """Whether training an edit may end."""
    moved = len(losses) > 1 and abs(losses[-1] - losses[-2]) < STOP_CHANGE
    return bool(losses) and losses[-1] < STOP_LOSS and moved


def _plain(text: str) -> str:
    """A text as part of a template: on one line, without braces."""
    return " ".join(text.replace("{", " ").replace("}", " ").split())
