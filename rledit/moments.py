"""Running mean and standard deviation of [K, V] rows, the lifelong normalisation of the method."""

from __future__ import annotations

from typing import Literal

from rledit.lazy_torch import Tensor, torch

Formula = Literal["exact", "official"]


class RunningMoments:
    """Mean and standard deviation per feature over all rows seen so far.

    `exact` merges micro-batches by Chan's formula in float64: the result does not depend on how
    rows were cut into micro-batches. `official` repeats the release's formula, which adds the
    unbiased micro-batch variance times the micro-batch's row count (inflating the result, undefined
    for one-row micro-batches).

    Args:
        width: Number of features d.
        formula: Which merge to use.
        dtype: Precision of the normalised output (and, in `official`, of the buffers); None:
            float32.
        device: Where the buffers lie.
        eps: What is added to the deviation; None: the least that float32 tells from 0 beside 1.
    """

    def __init__(
        self,
        width: int,
        formula: Formula = "exact",
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        eps: float | None = None,
    ) -> None:
        dtype = torch.float32 if dtype is None else dtype
        self.eps = torch.finfo(torch.float32).eps if eps is None else eps
        self.formula = formula
        self._dtype = dtype
        kept = torch.float64 if formula == "exact" else dtype
        self.count = torch.zeros((), dtype=kept, device=device)
        self.mean = torch.zeros(width, dtype=kept, device=device)
        self.squares = torch.zeros(width, dtype=kept, device=device)

    def reset(self) -> None:
        """Forget all rows."""
        self.count.zero_()
        self.mean.zero_()
        self.squares.zero_()

    def update(self, rows: Tensor) -> None:
        """Merge a micro-batch of rows (n x d).

        Raises:
            ValueError: A one-row micro-batch under the official formula, whose variance is
        undefined.
        """
        rows = rows.detach().reshape(-1, rows.shape[-1]).to(self.mean.dtype)
        n = len(rows)
        if n == 0:
            return
        if self.formula == "official" and n == 1:
            raise ValueError(
                "the official moments are undefined for a loss group with one row; "
                'use moments="exact" or larger loss groups'
            )
        mean = rows.mean(0)
        exact = self.formula == "exact"
        squares = (rows - mean).square().sum(0) if exact else rows.var(0) * n
        delta = mean - self.mean
        total = self.count + n
        self.squares += squares + delta.square() * self.count * n / total
        self.mean += delta * (n / total)
        self.count = total

    @property
    def std(self) -> Tensor:
        """(d,) sample standard deviation; zero before two rows were seen."""
        return (self.squares / (self.count - 1).clamp_min(1)).sqrt()

    def normalise(self, rows: Tensor) -> Tensor:
        """z = (rows − mean) / (std + eps), in the output precision."""
        mean, std = self.mean.to(self._dtype), self.std.to(self._dtype)
        return (rows.to(self._dtype) - mean) / (std + self.eps)

    def state_dict(self) -> dict[str, Tensor]:
        """The three buffers, copied."""
        return {
            "count": self.count.clone(),
            "mean": self.mean.clone(),
            "squares": self.squares.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put saved buffers back."""
        # Copies: updates work in place and must not reach into the caller's state.
        self.count = state["count"].to(self.count, copy=True)
        self.squares = state["squares"].to(self.squares, copy=True)
        self.mean = state["mean"].to(self.mean, copy=True)
