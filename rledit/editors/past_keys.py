"""The keys of earlier batches of a stream, which later batches are to leave as they are.

Σ kkᵀ over them stands beside the batch's own keys in the systems of AlphaEdit (arXiv 2410.02355,
K_p), sequential MEMIT and their relatives. In the normal equation of the hypernetworks it is an
extension of ours:

    S = (KᵀK + w Σ_past KᵀK + λI)⁻¹ KᵀD

is the minimum of ‖K S − D‖² + w ‖K_past S‖² + λ ‖S‖²: a batch is written into directions that no
earlier one has used. With w = 0, or before the second batch, it is MALMEN's equation, which sees
one batch alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rledit.editors.base import State, prefixed, unprefixed
from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel

Shape = tuple[int, int]

PREFIX = "past."
"""Of its names in an editor's state."""


class PastKeys:
    """Σ kkᵀ over the keys of all edits so far, per target module.

    Args:
        model: The model.
        modules: The target modules.
        dtype: Precision of the sums; None: the model's compute precision.

    Attributes:
        sums: Module → (d_in, d_in).
        empty: Whether there are no keys yet.
    """

    def __init__(
        self, model: EditableModel, modules: Sequence[str], dtype: torch.dtype | None = None
    ) -> None:
        shapes: dict[Shape, list[str]] = {}
        for name in modules:
            shapes.setdefault(model.shape(name), []).append(name)
        self._stacks = {
            shape: torch.zeros(
                len(names),
                shape[0],
                shape[0],
                dtype=dtype or model.compute_dtype,
                device=model.device,
            )
            for shape, names in shapes.items()
        }
        views = {
            name: self._stacks[shape][i]
            for shape, names in shapes.items()
            for i, name in enumerate(names)
        }
        self.sums: dict[str, Tensor] = {name: views[name] for name in modules}
        self.empty = True

    def of(self, shape: Shape) -> Tensor | None:
        """(M, d_in, d_in) sums of the modules of a shape, in their order; None while empty."""
        return None if self.empty else self._stacks[shape]

    def add(self, keys: Mapping[str, Tensor]) -> None:
        """Add keys (edits, d_in) by module."""
        for name, rows in keys.items():
            rows = rows.to(self.sums[name])
            self.sums[name].addmm_(rows.T, rows)
        self.empty = False

    def reset(self) -> None:
        """Forget all keys."""
        for total in self.sums.values():
            total.zero_()
        self.empty = True

    def state_dict(self) -> State:
        """The sums, copied."""
        return prefixed(PREFIX, {name: value.clone() for name, value in self.sums.items()})

    def load_state_dict(self, state: State) -> None:
        """Put saved sums back.

        Raises:
            ValueError: They are of other modules.
        """
        found = unprefixed(PREFIX, state)
        if set(found) != set(self.sums) or len(found) != len(state):
            raise ValueError(
                f"a state with {sorted(state)} is none of past keys of {sorted(self.sums)}"
            )
        for name, value in found.items():
            self.sums[name].copy_(value)
        self.empty = not any(bool(total.any()) for total in self.sums.values())
