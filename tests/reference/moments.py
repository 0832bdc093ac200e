"""Lifelong mean and deviation per feature, from the statistics of each batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

STD_EPSILON = torch.finfo(torch.float32).eps


@dataclass
class ReferenceMoments:
    """Mean and deviation per feature of all rows seen, by the law of total variance.

    Each batch is summarised by its own two-pass statistics; pooling them is exact:
    mean = Σ n_b mean_b / n, Σ (x - mean)² = Σ ss_b + Σ n_b (mean_b - mean)².
    """

    counts: list[int] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor) -> None:
        """Take in the rows (n, d) of one batch, all modules of a shape together."""
        mean = rows.mean(0)
        self.counts.append(len(rows))
        self.means.append(mean)
        self.squares.append((rows - mean).square().sum(0))

    def normalise(self, rows: Tensor) -> Tensor:
        """(rows - mean) / (std + ε) with the sample deviation, rows of shape (n, d)."""
        counts = torch.tensor(self.counts, dtype=rows.dtype, device=rows.device)[:, None]
        means = torch.stack(self.means)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        square = torch.stack(self.squares).sum(0) + (counts * (means - mean).square()).sum(0)
        std = (square / (total - 1).clamp(min=1)).sqrt()
        return (rows - mean) / (std + STD_EPSILON)
