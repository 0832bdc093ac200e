"""Padded loss groups and their losses: the samples of a group in one forward of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rledit.tokenization import IGNORED, Phase, Sample


def loss_groups(phase: Phase, model: Any) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The loss groups of a phase, each right-padded to its own longest sample."""
    for start in range(0, len(phase.samples), phase.group_size):
        group: Sequence[Sample] = phase.samples[start : start + phase.group_size]
        width = max(len(sample.input_ids) for sample in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for row, sample in enumerate(group):
            length = len(sample.input_ids)
            ids[row, :length], labels[row, :length] = sample.input_ids, sample.labels
            mask[row, :length] = 1
        device = model.device
        yield {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, labels.to(device)


def group_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the answer tokens of a group."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def group_divergence(reference: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """KL(p_ref ‖ p), mean over the answer tokens of a group."""
    ours, theirs = logits.log_softmax(-1), reference.log_softmax(-1)
    rows = (theirs.exp() * (theirs - ours)).sum(-1)
    return rows[labels != IGNORED].mean()


def gradient_of(tensor: Tensor) -> Tensor:
    """A tensor's gradient; zeros where no pass reached it."""
    return tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
