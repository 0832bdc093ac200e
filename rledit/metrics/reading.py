"""What a model answers, teacher-forced: read once, judged by every protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rledit.model import EditableModel
from rledit.ranks import dealt
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
    """Read all samples in one batched pass over the model's current weights.

    Several ranks share the samples out; every rank gets all readings.
    """
    counts = [len(s.answer_ids) for s in samples]
    predicted = [torch.zeros(n, dtype=torch.int64) for n in counts]
    nll = torch.zeros(len(samples), dtype=torch.float64)
    own = dealt(samples, model.ranks)
    for chunk in model.chunks([samples[i] for i in own]):
        logits = model.trunk.logits(chunk).to(model.compute_dtype)
        losses = F.cross_entropy(logits, chunk.labels.to(logits.device), reduction="none").cpu()
        places = [own[i] for i in chunk.index.tolist()]
        rows = [counts[i] for i in places]
        for i, guess, part in zip(
            places, logits.argmax(-1).cpu().split(rows), losses.split(rows), strict=True
        ):
            predicted[i] = guess
            nll[i] = part.mean()
    if model.ranks.size > 1 and samples:
        together = torch.cat(predicted)
        model.ranks.sum_(together)
        model.ranks.sum_(nll)
        predicted = list(together.split(counts))
    return [
        Reading(sample.answer_ids, guess, loss)
        for sample, guess, loss in zip(samples, predicted, nll.tolist(), strict=True)
    ]
