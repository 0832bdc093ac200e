"""Running covariance of rows, and its inverse square root."""

from __future__ import annotations

from rledit.lazy_torch import Tensor, torch


class RunningCovariance:
    """Mean and covariance over all rows seen so far, by Chan's merge in float64.

    Args:
        width: Number of features d.
        device: Where the buffers lie.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    def update(self, rows: Tensor) -> None:
        """Merge a micro-batch of rows (n, d)."""
        rows = rows.detach().reshape(-1, rows.shape[-1]).to(self.mean)
        n = len(rows)
        if n == 0:
            return
        mean = rows.mean(0)
        delta = mean - self.mean
        total = self.count + n
        centred = rows - mean
        self.products.addmm_(centred.T, centred)
        self.products += torch.outer(delta, delta) * (self.count * n / total)
        self.mean += delta * (n / total)
        self.count = total

    def whiten(self, rows: Tensor, shrinkage: float) -> Tensor:
        """(rows − mean) Σ^{-1/2}, with Σ pulled towards a multiple of the identity.

        Args:
            rows: (..., d).
            shrinkage: Multiple of the mean eigenvalue that is added to every eigenvalue; while
                fewer rows than features were seen, Σ alone is singular.
        """
        covariance = self.products / (self.count - 1).clamp_min(1)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0)
        values = values + shrinkage * values.mean() + torch.finfo(torch.float64).tiny
        inverse_root = (vectors * values.rsqrt()) @ vectors.T
        return ((rows.double() - self.mean) @ inverse_root).to(rows.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """The three buffers, copied."""
        return {
            "count": self.count.clone(),
            "mean": self.mean.clone(),
            "products": self.products.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put saved buffers back."""
        self.count = state["count"].to(self.mean).clone()
        self.mean = state["mean"].to(self.mean).clone()
        self.products = state["products"].to(self.products).clone()
