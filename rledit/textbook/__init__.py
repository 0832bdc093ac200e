"""RLEdit written out densely, equation by equation: the oracle of the tests and the opponent timed.

Nothing here is shared with the fast path but the records of a batch. Every loss group is one padded
forward of the whole model with all its logits, weights are edited in place and un-edited around
each forward, gradients are dense weight gradients, and each module solves its d_in x d_in normal
equation. That is how the authors' release works (arXiv 2502.05759, sections 3 and 4); the reward is
the article's. In float64 it judges the fast path, in float32 the fast path is timed against it.
The value vectors of locate-then-edit methods are here in the same manner.
"""

from rledit.textbook.capture import textbook_capture
from rledit.textbook.editor import (
    TextbookAction,
    TextbookRLEdit,
    TextbookStep,
    TextbookTrajectory,
)
from rledit.textbook.equation import textbook_shift, textbook_shift_gradient
from rledit.textbook.moments import TextbookMoments
from rledit.textbook.network import textbook_network, textbook_parameters
from rledit.textbook.settings import TextbookConfig
from rledit.textbook.value import textbook_values

__all__ = [
    "TextbookAction",
    "TextbookConfig",
    "TextbookMoments",
    "TextbookRLEdit",
    "TextbookStep",
    "TextbookTrajectory",
    "textbook_capture",
    "textbook_network",
    "textbook_parameters",
    "textbook_shift",
    "textbook_shift_gradient",
    "textbook_values",
]
