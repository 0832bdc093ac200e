"""The card of these tests; each skips where there is none."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """The CUDA card."""
    if not torch.cuda.is_available():
        pytest.skip(f"needs a CUDA card, and PyTorch {torch.__version__} sees none")
    return torch.device("cuda")
