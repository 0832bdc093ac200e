"""ENCORE: MEMIT with early stopping and a norm constraint, for long streams (arXiv 2502.01636).

Δ = R Kᵀ (λ C + K_p K_pᵀ + K Kᵀ + λ_n I)⁻¹. The optimisation of a value vector stops soon after its
target is the most probable token at every position of every context.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rledit.editors.memit import MEMIT, MEMITConfig
from rledit.locate.value import ValueConfig


@dataclass(frozen=True, kw_only=True)
class ENCOREConfig(MEMITConfig):
    """ENCORE's settings; the defaults are those for Llama-3-8B.

    Attributes:
        stop_argmax: The optimisation stops at the n-th evaluation that ranks the target first
            everywhere.
    """

    value_lr: float = 0.5
    ridge: float = 20.0
    past_keys: bool = True
    stop_argmax: int = 2

    def value_config(self) -> ValueConfig:
        """MEMIT's, with the early stop."""
        return replace(super().value_config(), stop_argmax=self.stop_argmax)


class ENCORE(MEMIT):
    """Early stopping and norm-constrained robust editing."""

    name = "encore"
    checked = {"properties": "test_encore_stops_early_and_remembers_keys"}
    Config = ENCOREConfig
    config: ENCOREConfig
