"""Value vectors: the output of a layer, optimised until the model answers with the new target.

For one edit, over its C context prompts (ROME, arXiv 2202.05262, eq. 4; MEMIT, 2210.07229, eq. 16):

    δ* = argmin  1/C Σ_c −log p(target | c, v + δ) / |target|
                 + λ_KL KL(p_δ ‖ p_0)("{subject} is a") + λ_decay ‖δ‖ / ‖v‖²

by Adam, δ clamped to ‖δ‖ ≤ c ‖v‖ after every step. The edits of a batch share each forward pass and
one Adam over their stacked deltas. Every term above belongs to one edit, and Adam works element by
element, so the result is that of one edit at a time; an edit that has converged leaves the passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rledit.finite import NonFiniteError, origin
from rledit.lazy_torch import F, Tensor, torch
from rledit.locate.requests import Request
from rledit.locate.sites import Site
from rledit.micro_batches import MicroBatch
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.tokenization import Sample

TOKENS_PER_ROW = 3
"""Tokens of the budget for each answer row: of a prompt's end every third token is answered."""


@dataclass(frozen=True, kw_only=True)
class ValueConfig:
    """How value vectors are optimised.

    Attributes:
        steps: Evaluations N; they make at most N - 1 Adam steps.
        lr: Adam's learning rate.
        decay: λ_decay.
        clamp: c, largest norm of δ relative to the value's.
        kl_factor: λ_KL.
        stop_loss: An edit stops once its loss is below.
        stop_argmax: An edit stops at the evaluation that is the n-th to rank its target first at
            every position of every context; None: it does not.
        edits_per_pass: Edits optimised together; None: all of a batch.
    """

    steps: int
    lr: float
    decay: float
    clamp: float
    kl_factor: float
    stop_loss: float = 0.05
    stop_argmax: int | None = None
    edits_per_pass: int | None = None


@dataclass(frozen=True, eq=False)
class Confinement:
    """Directions that the δ of some edits keeps off: after every step, δ ← δ − U Uᵀ δ.

    Attributes:
        space: U (hidden, r), orthonormal.
        edits: (edits,) bool, of which edits.
    """

    space: Tensor
    edits: Tensor

    def part(self, first: int, size: int) -> Confinement:
        """That of some edits in a row."""
        return Confinement(self.space, self.edits[first : first + size])

    def project(self, delta: Tensor) -> Tensor:
        """(edits, hidden) δ, projected where its edit is confined."""
        space = self.space.to(delta)
        off = delta - (delta @ space) @ space.T
        return torch.where(self.edits.to(delta.device)[:, None], off, delta)


@dataclass(frozen=True, eq=False)
class Values:
    """Value vectors of the edits of a batch.

    Attributes:
        initial: (edits, hidden), the values v before, at the bare prompt.
        delta: (edits, hidden), δ*.
        evaluations: (edits,) int64, evaluations made; Adam steps are one fewer.
        losses: (edits, N, 4) total, likelihood, KL and decay terms before each step; zeros after an
            edit has stopped.
        trace: (edits, N, hidden), δ at the start of each evaluation, where it was asked for.
    """

    initial: Tensor
    delta: Tensor
    evaluations: Tensor
    losses: Tensor
    trace: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """(edits, hidden), v + δ*."""
        return self.initial + self.delta


def optimise_values(
    model: EditableModel,
    requests: Sequence[Request],
    site: Site,
    config: ValueConfig,
    keep_trace: bool = False,
    confinement: Confinement | None = None,
) -> Values:
    """Optimise the value vectors of a batch of edits.

    Args:
        model: The model, with the weights it has now.
        requests: The edits.
        site: Where δ is added.
        config: How to optimise.
        keep_trace: Keep δ of every evaluation.
        confinement: Directions that the δ of some edits keeps off.

    Raises:
        NonFiniteError: A loss is not finite; names the edit, and the layer.
    """
    size = config.edits_per_pass or len(requests)
    parts: list[Values] = []
    for first in range(0, len(requests), size):
        group = _Group(model, requests[first : first + size], site, config)
        own = confinement.part(first, size) if confinement is not None else None
        parts.append(group.run(keep_trace, own))
    return Values(
        initial=torch.cat([p.initial for p in parts]),
        delta=torch.cat([p.delta for p in parts]),
        evaluations=torch.cat([p.evaluations for p in parts]),
        losses=torch.cat([p.losses for p in parts]),
        trace=torch.cat([p.trace for p in parts if p.trace is not None]) if keep_trace else None,
    )


class _Group:
    """The edits of one optimisation: their prompts side by side, edit by edit, essence last."""

    def __init__(
        self, model: EditableModel, requests: Sequence[Request], site: Site, config: ValueConfig
    ) -> None:
        self._model = model
        self._requests = requests
        self._site = site
        self._config = config
        self._n_contexts = len(requests[0].rewriting)
        samples: list[Sample] = []
        positions: list[int] = []
        for request in requests:
            samples += [*request.rewriting, request.essence]
            positions += [*request.positions, len(request.essence) - 1]
        per_edit = self._n_contexts + 1
        self._edit_of = torch.arange(len(requests)).repeat_interleave(per_edit)
        self._is_essence = torch.arange(len(samples)) % per_edit == self._n_contexts
        counts = torch.tensor([len(r.rewriting[0].answer_ids) for r in requests])
        self._row_weight = 1.0 / (counts.double() * self._n_contexts)
        self._reference: dict[int, Tensor] = {}
        values = site.begin(samples, torch.tensor(positions))
        self.initial = values[::per_edit].clone()

    def run(self, keep_trace: bool, confinement: Confinement | None = None) -> Values:
        """Adam on all edits that have not stopped."""
        config, initial = self._config, self.initial
        n_edits = len(self._requests)
        delta = torch.zeros_like(initial, requires_grad=True)
        optimiser = torch.optim.Adam([delta], lr=config.lr)
        limit = config.clamp * initial.norm(dim=-1, keepdim=True)
        active = torch.ones(n_edits, dtype=torch.bool)
        ranked_first = torch.zeros(n_edits, dtype=torch.long)
        result = Values(
            initial=initial,
            delta=torch.zeros_like(initial),
            evaluations=torch.zeros(n_edits, dtype=torch.long),
            losses=torch.zeros(n_edits, config.steps, 4, dtype=torch.float64),
            trace=initial.new_zeros(n_edits, config.steps, initial.shape[-1])
            if keep_trace
            else None,
        )
        passes = self._passes(active)
        for step in range(config.steps):
            if result.trace is not None:
                result.trace[active, step] = delta.detach()[active]
            delta.grad = torch.zeros_like(delta)
            terms, first = self._evaluate(delta, passes, active, last=step == config.steps - 1)
            result.losses[active, step] = terms[active]
            result.evaluations[active] += 1
            ranked_first += first & active
            stopped = active & self._stops(terms[:, 0], ranked_first, step)
            result.delta[stopped] = delta.detach()[stopped]
            if bool(stopped.any()):
                active = active & ~stopped
                if not bool(active.any()):
                    break
                passes = self._passes(active)
            optimiser.step()
            with torch.no_grad():
                if confinement is not None:
                    delta.copy_(confinement.project(delta))
                norm = delta.norm(dim=-1, keepdim=True)
                delta.copy_(torch.where(norm > limit, delta * limit / norm, delta))
        return result

    def _passes(self, active: Tensor) -> list[list[MicroBatch]]:
        """The prompts of the edits that go on: physical batches, and which share a loss."""
        chosen = active[self._edit_of].nonzero().flatten()
        parts = self._site.parts
        micro_batches = self._model.micro_batches(
            [parts[i] for i in chosen.tolist()],
            least=SINGLE_PASS_TOKENS,
            tokens_per_row=TOKENS_PER_ROW,
        )
        placed = [
            MicroBatch(c.samples, chosen[c.index], c.rows, chosen[c.row_sample], c.labels)
            for c in micro_batches
        ]
        if self._model.in_slices:  # ranks let go of a layer after the latest pass through it alone
            return [[c] for c in placed]
        return _pooled(placed, self._model.pass_tokens(SINGLE_PASS_TOKENS))

    def _evaluate(
        self, delta: Tensor, passes: Sequence[Sequence[MicroBatch]], active: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Losses of all edits, and their gradient in `delta.grad` unless no step follows.

        Returns:
            (edits, 4) total, likelihood, KL and decay terms in float64, and (edits,) whether the
            target ranks first everywhere.
        """
        n_edits = len(self._requests)
        terms = torch.zeros(n_edits, 4, dtype=torch.float64)
        first = torch.ones(n_edits, dtype=torch.bool)
        for micro_batches in passes:
            with torch.set_grad_enabled(not last):
                loss = self._loss(delta, micro_batches, terms, first)
            if not last:
                loss.backward()
        with torch.set_grad_enabled(not last):
            norms = self.initial.norm(dim=-1)
            decay = self._config.decay * delta.norm(dim=-1) / norms.square()
        if not last:
            decay.sum().backward()
        terms[:, 3] = decay.detach().double().cpu()
        terms[:, 0] = terms[:, 1:].sum(-1)
        self._require_finite(terms[:, 0], active)
        return terms, first

    def _loss(
        self, delta: Tensor, micro_batches: Sequence[MicroBatch], terms: Tensor, first: Tensor
    ) -> Tensor:
        """Loss of one pass; its rows are added to `terms`, and failures to rank noted."""
        from rledit.locate.losses import value_losses

        states = [self._site.states(c, delta[self._edit_of[c.index]]) for c in micro_batches]
        row_sample = torch.cat([c.row_sample for c in micro_batches])
        essence = self._is_essence[row_sample]
        order = essence.long().argsort(stable=True)
        edits = self._edit_of[row_sample[order]]
        n = len(order) - int(essence.sum())
        logits = self._model.prefix_cache.logits_of(torch.cat(states)[order.to(delta.device)])
        logits = logits.to(self._model.compute_dtype)
        labels = torch.cat([c.labels for c in micro_batches])[order[:n]].to(logits.device)
        if self._config.stop_argmax is not None:
            wrong = (logits[:n].argmax(-1) != labels).cpu()
            first[edits[:n][wrong]] = False
        losses = value_losses(logits, labels, self._log_reference(logits[n:], edits[n:]))
        weights = torch.full((len(edits),), self._config.kl_factor, dtype=torch.float64)
        weights[:n] = self._row_weight[edits[:n]]
        losses = losses * weights.to(losses)
        found = losses.detach().double().cpu()
        terms[:, 1].index_add_(0, edits[:n], found[:n])
        terms[:, 2].index_add_(0, edits[n:], found[n:])
        return losses.sum()

    @torch.no_grad()
    def _log_reference(self, logits: Tensor, edits: Tensor) -> Tensor:
        """(rows, vocabulary) log p_0 of essences; the first evaluation, at δ = 0, gives them."""
        keys = edits.tolist()
        if not all(edit in self._reference for edit in keys):
            self._reference.update(zip(keys, F.log_softmax(logits, dim=-1), strict=True))
        return torch.stack([self._reference[edit] for edit in keys]) if keys else logits

    def _stops(self, loss: Tensor, ranked_first: Tensor, step: int) -> Tensor:
        config = self._config
        stops = loss < config.stop_loss
        if config.stop_argmax is not None:
            stops = stops | (ranked_first >= config.stop_argmax)
        return stops | torch.full_like(stops, step == config.steps - 1)

    def _require_finite(self, loss: Tensor, active: Tensor) -> None:
        broken = (~loss.isfinite() & active).nonzero().flatten().tolist()
        if broken:
            where = self._requests[broken[0]].where
            samples = self._requests[broken[0]].rewriting[:1]
            raise NonFiniteError(
                f"{where}: the loss of the value vector is not finite; the model may have been "
                f"edited beyond repair, or the learning rate is too large; "
                f"{origin(self._model, samples)}"
            )


def _pooled(micro_batches: Sequence[MicroBatch], token_budget: int) -> list[list[MicroBatch]]:
    """Neighbouring micro-batches together, as long as they keep to the bounds of a single one.

    They share a run of the output embedding, a matrix too large to be read for a few rows.
    """
    pools: list[list[MicroBatch]] = []
    tokens = rows = 0
    for micro_batch in micro_batches:
        padded, own = len(micro_batch.samples) * micro_batch.width, len(micro_batch.rows)
        full = max(tokens + padded, TOKENS_PER_ROW * (rows + own)) > token_budget
        if full or not pools:
            pools.append([])
            tokens = rows = 0
        pools[-1].append(micro_batch)
        tokens += padded
        rows += own
    return pools
