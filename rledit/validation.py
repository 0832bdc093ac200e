"""Validation of a training: what the network as it is now makes of a stream nobody trains on.

The stream is edited from the unedited model, batch after batch as an evaluation stream is, and
scored as a whole after its last batch: efficacy, generalisation and specificity against the
unedited model's answers by token accuracy, and the reward. Training is left as it was: weights and
moments return, and the prompts of the stream have a prefix cache of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rledit.editors.base import TrainableEditor
from rledit.editors.own_prefixes import new_prefix_cache, prefix_cache_of
from rledit.finite import NonFiniteError, require_finite
from rledit.lazy_torch import Tensor, torch
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.protocols import protocol
from rledit.records import Edit
from rledit.reward import final_states, log_reference
from rledit.scoring import EditScore, Scorer
from rledit.stream import StreamScored, run_stream
from rledit.tokenization import EditBatch, Sample

PROTOCOL = "token_accuracy"
SCORES = ("efficacy", "generalization", "specificity_self")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a network is worth after some training.

    Attributes:
        step: Training steps made.
        efficacy, generalization, specificity_self: Percent; None where no edit has such a prompt.
        reward: −(L_e + λ_loc KL) of all edits on the model after the last batch, mean over batches.
        measures: What the editor says of itself, such as its steps.
        seconds: Wall time of the validation.
    """

    step: int
    efficacy: float | None
    generalization: float | None
    specificity_self: float | None
    reward: float
    measures: dict[str, float]
    seconds: float

    @property
    def score(self) -> float:
        """Mean of the scores that there are: what decides."""
        return _mean([getattr(self, name) for name in SCORES]) or 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """Everything measured but the time, by name."""
        found = {name: getattr(self, name) for name in (*SCORES, "score", "reward")}
        return {k: v for k, v in found.items() if v is not None} | self.measures

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Item:
    """A prompt of the reward: its weight, and the unedited model's states where it is a locality
    prompt."""

    sample: Sample
    weight: float
    reference: Tensor | None = None


class ValidationStream:
    """Validates an editor on one stream, as often as asked.

    Args:
        editor: The editor; its model is unedited.
        edits: The stream; neither trained on nor scored elsewhere.
        batch_size: Edits per batch.
        loc_coef: λ_loc of the reward.
    """

    def __init__(
        self,
        editor: TrainableEditor,
        edits: Sequence[Edit],
        batch_size: int,
        loc_coef: float = 1.0,
    ) -> None:
        model = editor.model
        self._edits = edits
        self._batch_size = batch_size
        self._loc_coef = loc_coef
        self._prefixes = new_prefix_cache(model)
        self.n_batches = -(-len(edits) // batch_size)
        starts = range(0, len(edits), batch_size)
        with editor.asked_as_validated():
            batches = [editor.encode(edits[i : i + batch_size]) for i in starts]
        samples = [
            s for b in batches for kind in (b.edit, b.equivalent, b.unrelated) for s in kind.samples
        ]
        with prefix_cache_of(model, self._prefixes), editor.asked_as_validated():
            self._scorer = Scorer(model, edits, [protocol(PROTOCOL)], beside=samples)
            if self._scorer.resident:
                # All are recorded now, in the same company whichever validation comes first.
                own = self._scorer.deal.own(samples)
                passes = model.own_micro_batches(samples, own, SINGLE_PASS_TOKENS)
                model.prefix_cache.prefetch(passes)
            self._items = self._asked(model, batches)
        self._forget()

    def _asked(self, model: EditableModel, batches: Sequence[EditBatch]) -> list[_Item]:
        """The prompts of the reward that fall to this rank, with their references."""
        deal = self._scorer.deal
        locality = [s for batch in batches for s in batch.unrelated.samples]
        with model.weights.unedited():
            references = iter(final_states(model, locality, deal.own(locality)))
        items: list[_Item] = []
        for batch in batches:
            for kind, compared in ((batch.equivalent, False), (batch.unrelated, True)):
                weights: list[float] = kind.weights.tolist() if kind.samples else []
                for i in deal.own(kind.samples):
                    reference = next(references) if compared else None
                    items.append(_Item(kind.samples[i], weights[i], reference))
        return items

    def __call__(self, editor: TrainableEditor, step: int) -> Validation:
        """Validate the editor as it is after so many training steps.

        Every rank of a sharded or shared model makes this call, and gets the same.

        Raises:
            NonFiniteError: An edit, the weights it leaves, or an answer is no number.
        """
        began = time.perf_counter()
        try:
            with (
                prefix_cache_of(editor.model, self._prefixes),
                editor.asked_as_validated(),
                editor.edits_aside(),
            ):
                scores = self._scores(editor)
                reward = -self._loss(editor) / self.n_batches
            require_finite({"reward": reward}, "the reward", editor.model)
        except NonFiniteError as error:
            raise error.at(f"validation after training step {step}") from None
        finally:
            self._forget()
        return Validation(
            step=step,
            **{name: _mean([getattr(s, name) for s in scores]) for name in SCORES},
            reward=reward,
            measures=editor.training_measures,
            seconds=time.perf_counter() - began,
        )

    def _forget(self) -> None:
        """Begin with an empty prefix cache where it does not hold the stream."""
        if not self._scorer.resident:
            self._prefixes.clear()

    def _scores(self, editor: TrainableEditor) -> list[EditScore]:
        """The scores of all edits that no later one supersedes, after the last batch."""
        stream = run_stream(editor, self._edits, self._batch_size, [self.n_batches], self._scorer)
        scored = [event for event in stream if isinstance(event, StreamScored)]
        return [score for score in scored[-1].scores if not score.superseded]

    @torch.no_grad()
    def _loss(self, editor: TrainableEditor) -> float:
        """Σ over batches of L_e + λ_loc KL, on the current weights."""
        from rledit.losses import row_losses

        model = editor.model
        items, samples = self._items, [item.sample for item in self._items]
        everything = range(len(items))
        factors = [i.weight * (1.0 if i.reference is None else self._loc_coef) for i in items]
        weights = torch.tensor(factors, dtype=torch.float64)
        compared = torch.tensor([i.reference is not None for i in items], dtype=torch.bool)
        total = torch.zeros((), dtype=torch.float64)
        for micro_batch in model.own_micro_batches(samples, everything, SINGLE_PASS_TOKENS):
            logits = model.prefix_cache.logits(micro_batch).to(model.compute_dtype)
            known = [items[i].reference for i in micro_batch.index.tolist()]
            reference = log_reference(model, known)
            rows = micro_batch.row_sample
            labels = micro_batch.labels.to(logits.device)
            losses = row_losses(logits, labels, compared[rows], reference)
            total += (losses.double().cpu() * weights[rows]).sum()
        model.ranks.all_reduce_(total)
        return float(total)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
