"""Passes over the same samples again and again, of which only a memory changes between two.

A value or a side memory is trained by many steps on a few prompts. What the steps have in common is
made once: how the samples are cut into passes, and what each pass begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rledit.lazy_torch import Tensor, torch
from rledit.micro_batches import MicroBatch
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.prefix_store import Prefix
from rledit.ranks import shard
from rledit.tokenization import Sample


@dataclass(frozen=True, eq=False)
class Repeated:
    """A pass that is made again and again.

    Attributes:
        micro_batch: Its samples.
        prefix: What it begins with.
        labels: (rows,) int64, the token to predict at each row, on the model's device.
    """

    micro_batch: MicroBatch
    prefix: Prefix
    labels: Tensor


class RepeatedPasses:
    """This rank's passes over its share of samples.

    Every rank makes one, and then runs as many passes as `parts` has.

    Args:
        model: The model.
        samples: The samples, the same on every rank.
    """

    def __init__(self, model: EditableModel, samples: Sequence[Sample]) -> None:
        self._model = model
        self.samples = samples
        own = shard(samples, model.ranks)
        cache = model.prefix_cache
        self.parts = [
            Repeated(micro_batch, cache.prefix_of(micro_batch), micro_batch.labels.to(model.device))
            for micro_batch in model.own_micro_batches(samples, own, SINGLE_PASS_TOKENS)
        ]

    def logits(self, part: Repeated) -> Tensor:
        """(rows, vocabulary) in the compute precision, with their graph."""
        model = self._model
        with torch.enable_grad():
            logits = model.prefix_cache.run(part.micro_batch, prefix=part.prefix).logits
            return logits.to(model.compute_dtype)
