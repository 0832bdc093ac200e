"""The keys of earlier batches of a stream in the normal equation: an extension of ours.

    S = (KᵀK + w Σ_past KᵀK + λI)⁻¹ KᵀD

is the minimum of ‖K S − D‖² + w ‖K_past S‖² + λ ‖S‖²: a batch is written into directions that no
earlier one has used, as AlphaEdit (arXiv 2410.02355, K_p) and MEMIT's covariance do. With w = 0, or
before the second batch, it is MALMEN's equation, which sees one batch alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rledit.editors.base import State
from rledit.lazy_torch import Tensor, torch

Shape = tuple[int, int]


class PastKeySums:
    """Σ kkᵀ over the keys of the batches so far, in float64, of all modules of each shape.

    Args:
        shapes: (d_in, d_out) → names of the modules.
        device: Where the sums lie; d_in² numbers of 8 bytes a module, once there is a batch.
    """

    def __init__(
        self, shapes: Mapping[Shape, Sequence[str]], device: torch.device | str = "cpu"
    ) -> None:
        self._shapes = {shape: tuple(names) for shape, names in shapes.items()}
        self._device = device
        self._sums: dict[Shape, Tensor] = {}

    def reset(self) -> None:
        """Forget all batches."""
        self._sums.clear()

    def of(self, shape: Shape) -> Tensor | None:
        """(M, d_in, d_in) sums of a shape's modules; None before the first batch."""
        return self._sums.get(shape)

    def remember(self, keys: Mapping[str, Tensor]) -> None:
        """Add a batch that was written: module → K (n, d_in)."""
        for shape, names in self._shapes.items():
            rows = torch.stack([keys[name] for name in names]).double()
            product = rows.mT @ rows
            found = self._sums.get(shape)
            self._sums[shape] = product if found is None else found.add_(product)

    def state_dict(self) -> State:
        """The sums, copied; nothing before the first batch."""
        return {f"{i}x{o}": value.clone() for (i, o), value in self._sums.items()}

    def load_state_dict(self, state: State) -> None:
        """Put saved sums back."""
        known = {f"{i}x{o}": (i, o) for i, o in self._shapes}
        self._sums = {
            known[name]: value.to(self._device, torch.float64).clone()
            for name, value in state.items()
        }
