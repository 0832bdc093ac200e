"""The token-wise choice on the logits of a padded group, as RLEdit's release computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from rledit.tokenization import IGNORED


def official_choice(logits: Tensor, labels: Tensor, old_labels: Tensor) -> Tensor:
    """Share of each sample's answer positions that prefer the new token to the old one.

    All three are cut to the narrower of the two label widths, so a score depends on how the group
    was padded. Old labels are padded with 0: beyond the old answer's end the new token is compared
    with token 0. A tie counts as failure.

    Args:
        logits: (b, T, vocabulary) at all positions of a padded group.
        labels: (b, T) int64, new answer, -100 off it.
        old_labels: (b, T_old) int64, old answer, -100 on the prompt, 0 beyond its end.

    Returns:
        (b,) float32 in 0..1; NaN where the cut leaves no answer position.

    Raises:
        ValueError: At an answer position the old labels are still on the prompt.
    """
    width = min(labels.shape[1], old_labels.shape[1])
    logits, labels, old_labels = logits[:, :width], labels[:, :width], old_labels[:, :width]
    mask = labels != IGNORED
    if bool((old_labels[mask] < 0).any()):
        row = int(((old_labels < 0) & mask).any(1).nonzero()[0])
        raise ValueError(
            f"row {row}: the old answer begins after the new one; both must continue one prompt"
        )
    new = logits.gather(2, labels.clamp_min(0)[..., None]).squeeze(2)
    old = logits.gather(2, old_labels.clamp_min(0)[..., None]).squeeze(2)
    preferred = ((new > old) & mask).sum(1)
    return preferred.to(torch.float32) / mask.sum(1)
