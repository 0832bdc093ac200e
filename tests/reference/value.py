"""Value vectors the plain way: one edit at a time, whole forward passes, every logit.

An independent account of the equations of arXiv 2202.05262 and 2210.07229. It judges the batched
optimisation and is timed against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from rledit.locate.requests import Request
    from rledit.locate.value import ValueConfig


def reference_values(
    model: nn.Module,
    requests: Sequence[Request],
    site: str,
    config: ValueConfig,
    projections: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Targets (edits, hidden) and evaluations (edits,) of several edits, one after another.

    Args:
        model: A Hugging Face causal language model.
        requests: The edits.
        site: Module at whose output δ is added.
        config: How to optimise.
        projections: (hidden, hidden) matrices that δ is multiplied with after every step, one an
            edit; None where it is not.
    """
    own = projections or [None] * len(requests)
    pairs = zip(requests, own, strict=True)
    found = [_value(model, request, site, config, projection) for request, projection in pairs]
    return torch.stack([f[0] for f in found]), torch.tensor([f[1] for f in found])


def _value(
    model: nn.Module, request: Request, site: str, config: ValueConfig, projection: Tensor | None
) -> tuple[Tensor, int]:
    """Target of one edit, and the number of evaluations."""
    added = _Added([*request.positions, len(request.essence) - 1])
    device = next(model.parameters()).device
    ids = _padded([s.input_ids for s in (*request.rewriting, request.essence)]).to(device)
    handle = model.get_submodule(site).register_forward_hook(added)
    try:
        evaluations = _optimise(model, ids, request, added, config, projection)
    finally:
        handle.remove()
    return added.value + added.delta.detach(), evaluations


def _optimise(
    model: nn.Module,
    ids: Tensor,
    request: Request,
    added: _Added,
    config: ValueConfig,
    projection: Tensor | None,
) -> int:
    """Adam on δ until it stops; returns the number of evaluations."""
    reference: Tensor | None = None
    optimiser: torch.optim.Adam | None = None
    hits = 0
    for step in range(config.steps):
        logits = model(input_ids=ids, use_cache=False).logits
        delta, value = added.delta, added.value
        optimiser = optimiser or torch.optim.Adam([delta], lr=config.lr)
        log_p = F.log_softmax(logits, dim=-1)
        now = log_p[-1, added.positions[-1]]
        reference = now.detach() if reference is None else reference
        likelihood, first = _likelihood(log_p, request)
        divergence = (now.exp() * (now - reference)).sum()
        decay = config.decay * delta.norm() / value.norm() ** 2
        loss = likelihood + config.kl_factor * divergence + decay
        hits += first
        done = config.stop_argmax is not None and hits >= config.stop_argmax
        if done or float(loss.detach()) < config.stop_loss or step == config.steps - 1:
            return step + 1
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if projection is not None:
            with torch.no_grad():
                delta.copy_(delta @ projection)
        limit = config.clamp * value.norm()
        if delta.norm() > limit:
            with torch.no_grad():
                delta.mul_(limit / delta.norm())
    raise ValueError(f"steps must be at least 1, not {config.steps}")


class _Added:
    """A forward hook that adds δ at one position of every sample.

    Attributes:
        positions: The positions.
        value: (hidden,), the first sample's output there before any change.
        delta: (hidden,), δ, a leaf; zero at first.
    """

    value: Tensor
    delta: Tensor

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions = torch.tensor(positions)
        self._begun = False

    def __call__(self, _: nn.Module, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if not self._begun:
            self._begun = True
            self.value = hidden[0, self.positions[0]].detach().clone()
            self.delta = torch.zeros_like(self.value, requires_grad=True)
        changed = hidden.clone()
        changed[torch.arange(len(hidden)), self.positions] += self.delta
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


def _padded(rows: Sequence[Tensor]) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.stack([F.pad(row, (0, width - len(row))) for row in rows])


def _likelihood(log_p: Tensor, request: Request) -> tuple[Tensor, bool]:
    """Mean over contexts of the target's token-mean loss, and whether it ranks first everywhere."""
    losses: list[Tensor] = []
    first = True
    for b, sample in enumerate(request.rewriting):
        rows = log_p[b, sample.answer_positions]
        labels = sample.answer_ids.to(rows.device)
        losses.append(-rows.gather(1, labels[:, None]).mean())
        first = first and bool((rows.argmax(-1) == labels).all())
    return torch.stack(losses).mean(), first
