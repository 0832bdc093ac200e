"""What a model answers, teacher-forced: read once, judged by every protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rledit.model import EditableModel
from rledit.tokenization import Sample


@dataclass(frozen=True, eq=False)
class Reading:
    """One prompt's answer positions as the model sees them.

    Attributes:
        expected: (a,) int64, the answer's tokens.
        predicted: (a,) int64, the most likely token at each answer position.
        nll: Mean negative log-likelihood of the answer, nats per token.
    """

    expected: Tensor
    predicted: Tensor
    nll: float


@torch.no_grad()
def read(model: EditableModel, samples: Sequence[Sample]) -> list[Reading]:
    """Read all samples in one batched pass over the model's current weights."""
    readings: list[Reading | None] = [None] * len(samples)
    for chunk in model.chunks(samples):
        logits = model.trunk.logits(chunk).to(model.compute_dtype)
        labels = chunk.labels.to(logits.device)
        nll = F.cross_entropy(logits, labels, reduction="none").cpu()
        predicted = logits.argmax(-1).cpu()
        counts = [len(s.answer_ids) for s in chunk.samples]
        for i, expected, guess, losses in zip(
            chunk.index.tolist(),
            chunk.labels.split(counts),
            predicted.split(counts),
            nll.split(counts),
            strict=True,
        ):
            readings[i] = Reading(expected, guess, float(losses.mean()))
    return [r for r in readings if r is not None]
