"""Fine-tuning: Adam on the target's negative log-likelihood, batch by batch.

The prompt is masked and every target token is scored at the position that predicts it (the form
the literature calls FT-M).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rledit.editors.base import Editor
from rledit.model import EditableModel
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """Settings of fine-tuning.

    Attributes:
        modules: Edited linears.
        steps: Adam steps per batch of edits, with a fresh optimiser each batch.
        lr: Adam's learning rate.
        weight_decay: Adam's L2 penalty.
    """

    modules: tuple[str, ...]
    steps: int = 25
    lr: float = 5e-4
    weight_decay: float = 0.0


class FineTuning(Editor):
    """Multi-step fine-tuning of the chosen matrices."""

    name = "ft"
    Config = FineTuningConfig
    config: FineTuningConfig

    def __init__(self, model: EditableModel, config: FineTuningConfig) -> None:
        super().__init__(model, config)

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Fine-tune on the batch's edit prompts."""
        weights = self.model.weights
        before = {name: weights.read(name).clone() for name in weights.names}
        masters = {name: value.clone().requires_grad_() for name, value in before.items()}
        optimiser = torch.optim.Adam(
            masters.values(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        losses: list[float] = []
        for _ in range(self.config.steps):
            loss, gradients = self._gradients(batch)
            losses.append(loss)
            for name, master in masters.items():
                master.grad = gradients[name].to(master.dtype)
            optimiser.step()
            for name, master in masters.items():
                weights.set(name, master.detach())
        moved = [masters[name].detach() - before[name] for name in before]
        norm = torch.stack([m.double().square().sum() for m in moved]).sum().sqrt()
        return {"edit_loss": losses[0], "final_loss": losses[-1], "shift_norm": float(norm)}

    def _gradients(self, batch: EditBatch) -> tuple[float, dict[str, Tensor]]:
        """Mean loss over target tokens, and its gradient for every edited matrix."""
        model = self.model
        parameters = {name: model.weights.parameter(name) for name in model.modules}
        n_tokens = sum(len(s.answer_ids) for s in batch.edit.samples)
        total = 0.0
        sums = {
            name: torch.zeros_like(p, dtype=model.compute_dtype) for name, p in parameters.items()
        }
        for p in parameters.values():
            p.requires_grad_()
        try:
            for chunk in model.chunks(batch.edit.samples):
                with torch.enable_grad():
                    logits = model.trunk.logits(chunk).to(model.compute_dtype)
                    labels = chunk.labels.to(model.device)
                    loss = F.cross_entropy(logits, labels, reduction="sum") / n_tokens
                found = torch.autograd.grad(loss, list(parameters.values()))
                total += float(loss.detach())
                for name, gradient in zip(parameters, found, strict=True):
                    sums[name] += gradient
        finally:
            for p in parameters.values():
                p.requires_grad_(False)
        return total, sums
