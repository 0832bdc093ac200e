"""Fine-tuning batch by batch, in the forms the literature compares.

FT and FT-M: Adam on the target's negative log-likelihood, the prompt masked and every target token
scored at the position that predicts it. FT-L: the same with every entry held near where the batch
found it. The common release's form, which scores all target tokens at the prompt's last position,
is an option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rledit.editors.base import Editor
from rledit.editors.sphere import SphereSettings
from rledit.editors.tuning import Descent, Objective, PromptEndLikelihood, TargetLikelihood, descend
from rledit.lazy_torch import Tensor, torch
from rledit.records import Edit
from rledit.tokenization import EditBatch, Encoder, TokenizationError

Scored = Literal["target", "prompt_end"]
_NO_PADDING = (
    "the objective prompt_end scores the padding of targets, and the tokenizer has no padding "
    'token; name one in a copy of the checkpoint ("pad_token" in tokenizer_config.json), or take '
    "objective: target"
)


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig(SphereSettings):
    """Settings of fine-tuning.

    Attributes:
        modules: Target modules.
        steps: Passes over the batch, with a fresh optimiser each batch.
        lr: Adam's learning rate.
        weight_decay: Adam's L2 penalty.
        batch_size: Edits per optimiser step; None: the whole batch.
        norm_constraint: ε; no entry moves further than this in one batch. None: no constraint.
        objective: `target` scores each target token where it is predicted; `prompt_end` repeats
            the common release, which scores all of them (and the padding and BOS that its
            tokenizer adds to them) at the last position of the prompt.
        stop_loss: Stop below this loss; the common release has 0.01.
    """

    modules: tuple[str, ...]
    steps: int = 25
    lr: float = 5e-4
    weight_decay: float = 0.0
    batch_size: int | None = None
    norm_constraint: float | None = None
    objective: Scored = "target"
    stop_loss: float = 0.0

    def descent(self) -> Descent:
        """How to descend."""
        return Descent(
            lr=self.lr,
            weight_decay=self.weight_decay,
            norm_constraint=self.norm_constraint,
            stop_loss=self.stop_loss,
        )


class FineTuning(Editor):
    """Multi-step fine-tuning of the chosen matrices."""

    name = "ft"
    checked = {"properties": "test_ft_and_ft_m_are_one_method"}
    Config = FineTuningConfig
    config: FineTuningConfig
    prefix_safe = True
    work_kind = "tuned"

    @classmethod
    def skip_reason_of(cls, config: FineTuningConfig, encoder: Encoder) -> str | None:
        """A tokenizer has to have a padding token where the objective scores it."""
        if config.objective == "prompt_end" and encoder.tokenizer.pad_token_id is None:
            return _NO_PADDING
        return None

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Fine-tune on the batch's edit prompts."""
        weights = self.model.weights
        before = {name: weights.read(name).clone() for name in weights.names}
        passes = [self.objectives(batch)] * self.config.steps
        losses = descend(self.model, weights, passes, self.config.descent())
        if self.sphere is not None:
            self.sphere.confine(weights, before)
        return {
            "edit_loss": losses[0],
            "final_loss": losses[-1],
            "shift_norm": moved(before, {name: weights.read(name) for name in before}),
        }

    def objectives(self, batch: EditBatch) -> list[Objective]:
        """The mini-batches of a pass."""
        size = self.config.batch_size or len(batch.edit)
        starts = range(0, len(batch.edit), size)
        if self.config.objective == "target":
            samples = batch.edit.samples
            return [TargetLikelihood(samples[first : first + size]) for first in starts]
        if not batch.edits:
            raise TokenizationError("the objective prompt_end needs the text of the edits")
        encoder = self.model.encoder
        return [prompt_end(encoder, batch.edits[first : first + size]) for first in starts]


def prompt_end(encoder: Encoder, edits: Sequence[Edit]) -> PromptEndLikelihood:
    """The common release's objective, with its tokens.

    Targets are tokenised with the tokenizer's own special tokens and padded; only the unknown
    token is left out of the count, where there is one.
    """
    tokenizer = encoder.tokenizer
    if tokenizer.pad_token_id is None:
        raise TokenizationError(_NO_PADDING)
    rows = [_with_special_tokens(encoder, edit) for edit in edits]
    width = max(len(row) for row in rows)
    padded = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]
    targets = torch.tensor(padded, dtype=torch.long)
    unknown = tokenizer.unk_token_id
    counted = torch.ones_like(targets, dtype=torch.bool) if unknown is None else targets != unknown
    return PromptEndLikelihood([encoder.prompt_ids(e.prompt) for e in edits], targets, counted)


def _with_special_tokens(encoder: Encoder, edit: Edit) -> list[int]:
    """A target as the tokenizer writes it with its special tokens on, the target itself as text."""
    target = edit.target.strip()
    text = f"{encoder.answer_lead(edit.prompt, target)}{target}"
    return encoder.with_special_tokens(text)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Frobenius norm of a change over all matrices."""
    squares = [(after[name] - before[name]).double().square().sum() for name in before]
    return float(torch.stack(squares).sum().sqrt())


@dataclass(frozen=True, kw_only=True)
class FTLConfig(FineTuningConfig):
    """FT-L's settings: the norm constraint of arXiv 2012.00363."""

    norm_constraint: float | None = 5e-5


class FTL(FineTuning):
    """Fine-tuning under an elementwise norm constraint."""

    name = "ft_l"
    checked = {"properties": "test_ft_l_stays_within_its_constraint_of_where_a_batch_began"}
    Config = FTLConfig


class FTM(FineTuning):
    """Fine-tuning on the full target with the prompt masked, under the name of the literature."""

    name = "ft_m"
    checked = {"properties": "test_ft_and_ft_m_are_one_method"}
