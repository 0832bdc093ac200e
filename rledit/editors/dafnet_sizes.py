"""Sizes of DAFNet's network, which a plan reads without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Averaged = Literal["products", "shares"]
"""Over blocks: the mean of their products, or of their shares (`dafnet_network.edit_weights`)."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths of a block.

    Attributes:
        hidden: Hidden width of the two networks that weigh and sum an edit's rows.
        heads: Heads of the attention between edits.
        head_width: Width of each.
        weighing_heads: Heads of the attention that weighs edits against earlier ones.
        weighing_width: Width of each.
        inner: Hidden width of the network at the end of a block.
    """

    hidden: int
    heads: int
    head_width: int
    weighing_heads: int
    weighing_width: int
    inner: int

    @property
    def past(self) -> int:
        """Numbers that a block keeps of an edit in a module."""
        return 2 * self.heads * self.head_width + self.weighing_heads * self.weighing_width

    def parameters(self, width: int) -> int:
        """Parameters of a block on rows of a width, without biases, norms and scales."""
        between = self.heads * self.head_width
        weighing = self.weighing_heads * self.weighing_width
        own = 3 * self.hidden + 4 * between + 2 * weighing + 2 * self.inner
        return width * own + self.hidden
