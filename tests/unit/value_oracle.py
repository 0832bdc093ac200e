"""Value vectors the plain way: one edit at a time, whole forward passes, every logit.

An independent account of the equations of arXiv 2202.05262 and 2210.07229, for comparison and as
the yardstick of speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rledit.locate.requests import Request
from rledit.locate.value import ValueConfig
from rledit.model import EditableModel


def plain_value(
    model: EditableModel, request: Request, site: str, config: ValueConfig
) -> tuple[Tensor, int]:
    """Target of one edit, and the number of evaluations.

    Args:
        model: The model.
        request: The edit.
        site: Module at whose output δ is added.
        config: How to optimise.
    """
    samples = [*request.rewriting, request.essence]
    positions = [*request.positions, len(request.essence) - 1]
    width = max(len(s) for s in samples)
    ids = torch.stack([F.pad(s.input_ids, (0, width - len(s))) for s in samples])
    every = torch.arange(len(samples))
    delta: Tensor | None = None
    value: Tensor | None = None

    def add(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal delta, value
        hidden = output[0] if isinstance(output, tuple) else output
        if delta is None or value is None:
            value = hidden[0, positions[0]].detach().clone()
            delta = torch.zeros_like(value, requires_grad=True)
        changed = hidden.clone()
        changed[every, torch.tensor(positions)] += delta
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.model.get_submodule(site).register_forward_hook(add)
    reference: Tensor | None = None
    optimiser: torch.optim.Adam | None = None
    evaluations, hits = 0, 0
    try:
        for step in range(config.steps):
            logits = model.model(input_ids=ids, use_cache=False).logits
            assert delta is not None and value is not None
            optimiser = optimiser or torch.optim.Adam([delta], lr=config.lr)
            log_p = F.log_softmax(logits, dim=-1)
            now = log_p[-1, positions[-1]]
            reference = now.detach() if reference is None else reference
            likelihood, first = _likelihood(log_p, request)
            divergence = (now.exp() * (now - reference)).sum()
            decay = config.decay * delta.norm() / value.norm() ** 2
            loss = likelihood + config.kl_factor * divergence + decay
            evaluations += 1
            hits += first
            if config.stop_argmax is not None and hits >= config.stop_argmax:
                break
            if float(loss.detach()) < config.stop_loss or step == config.steps - 1:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            limit = config.clamp * value.norm()
            if delta.norm() > limit:
                with torch.no_grad():
                    delta.mul_(limit / delta.norm())
    finally:
        handle.remove()
    if value is None or delta is None:
        raise RuntimeError(f"module {site!r} did not run")
    return value + delta.detach(), evaluations


def _likelihood(log_p: Tensor, request: Request) -> tuple[Tensor, bool]:
    losses: list[Tensor] = []
    first = True
    for b, sample in enumerate(request.rewriting):
        rows = log_p[b, sample.answer_positions]
        losses.append(-rows.gather(1, sample.answer_ids[:, None]).mean())
        first = first and bool((rows.argmax(-1) == sample.answer_ids).all())
    return torch.stack(losses).mean(), first


def plain_values(
    model: EditableModel, requests: Sequence[Request], site: str, config: ValueConfig
) -> tuple[Tensor, Tensor]:
    """Targets (edits, hidden) and evaluations (edits,) of several edits, one after another."""
    found = [plain_value(model, request, site, config) for request in requests]
    return torch.stack([f[0] for f in found]), torch.tensor([f[1] for f in found])
