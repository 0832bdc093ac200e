"""RLEdit written out densely, equation by equation: the oracle of the tests and the opponent timed.

Nothing here is shared with the fast path but the records of a batch. Every loss group is one padded
forward of the whole model with all its logits, weights are edited in place and un-edited around
each forward, gradients are dense weight gradients, and each module solves its d_in x d_in normal
equation. That is how the authors' release works (arXiv 2502.05759, sections 3 and 4); the reward is
the paper's. In float64 it judges the fast path, in float32 the fast path is timed against it.
The value vectors of locate-then-edit methods are here in the same manner, and three sequential
methods whole.
"""

from tests.reference.capture import reference_capture
from tests.reference.editor import (
    ReferenceAction,
    ReferenceRLEdit,
    ReferenceStep,
    ReferenceTrajectory,
)
from tests.reference.equation import reference_shift, reference_shift_gradient
from tests.reference.moments import ReferenceMoments
from tests.reference.network import reference_network, reference_parameters
from tests.reference.sequential import (
    ReferenceBetaEdit,
    ReferenceDeltaEdit,
    ReferenceLyapLock,
)
from tests.reference.settings import ReferenceConfig
from tests.reference.value import reference_values

__all__ = [
    "ReferenceAction",
    "ReferenceBetaEdit",
    "ReferenceConfig",
    "ReferenceDeltaEdit",
    "ReferenceLyapLock",
    "ReferenceMoments",
    "ReferenceRLEdit",
    "ReferenceStep",
    "ReferenceTrajectory",
    "reference_capture",
    "reference_network",
    "reference_parameters",
    "reference_shift",
    "reference_shift_gradient",
    "reference_values",
]
