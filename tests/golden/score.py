"""Success ratios as the releases report them, from this project's metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from rledit.model import EditableModel
from rledit.protocols import read, token_accuracy
from tests.golden.official_choice import official_choice

from .spec import KINDS, Stream, samples_of


def success(model: EditableModel, stream: Stream) -> dict[str, Tensor]:
    """Per prompt kind, the success of every sample of the stream under the current weights."""
    return {
        kind: torch.cat(
            [score_group(model, group) for step in stream.groups for group in step[kind]]
        )
        for kind in KINDS
    }


def score_group(model: EditableModel, group: dict[str, Tensor]) -> Tensor:
    """The success of every sample of one padded group."""
    if "old_labels" in group:
        logits = padded_logits(model, group)
        return official_choice(logits, group["labels"], group["old_labels"])
    readings = read(model, samples_of(group))
    return torch.tensor([token_accuracy.score(reading) for reading in readings])


@torch.no_grad()
def padded_logits(model: EditableModel, group: dict[str, Tensor]) -> Tensor:
    """(b, T, vocabulary) logits of a right-padded group, zeros off the answers."""
    labels = group["labels"]
    padded: Tensor | None = None
    for micro_batch in model.micro_batches(samples_of(group)):
        rows = model.prefix_cache.logits(micro_batch)
        if padded is None:
            padded = rows.new_zeros(*labels.shape, rows.shape[-1])
        counts = [len(sample.answer_ids) for sample in micro_batch.samples]
        for i, values in zip(micro_batch.index.tolist(), rows.split(counts), strict=True):
            padded[i, labels[i] >= 0] = values
    assert padded is not None
    return padded
