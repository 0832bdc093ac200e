"""The reward of one batch of a trajectory and its gradient with respect to the batch's shift.

    L_t = Σ_{j=0}^{min(k-1, t)} μ^j [ L_e(batch t-j) + λ_loc KL(batch t-j) ]  (+ η_reg ‖S_t‖²)

L_e is the cross-entropy of the target on the equivalent prompts, KL compares the answers of
unrelated prompts with a reference model, both under the weights after the edit; terms with j ≥ 1
are the paper's memory backtracking (RLEdit, arXiv 2502.05759, section 4). The norm term is a
function of the shift alone and is added by the editor.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rledit.model import EditableModel
from rledit.shift import Shifts, traced
from rledit.tokenization import EditBatch, Phase, Sample

KLReference = Literal["pretrained", "previous"]
LocalityGradient = Literal["edited", "unedited"]


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What the reward is made of.

    Attributes:
        loc_coef: λ_loc, weight of the divergence on unrelated prompts.
        decay: μ, weight of a batch j steps back is μ^j.
        depth: k, batches scored at each step, the current one counted.
        kl_reference: `pretrained` compares with the unedited model W_0, `previous` with W_{t-1}.
        locality_gradient: `edited` takes the divergence's gradient at the edited weights;
            `unedited` repeats the release, which has un-edited them by then.
    """

    loc_coef: float
    decay: float = 1.0
    depth: int = 1
    kl_reference: KLReference = "pretrained"
    locality_gradient: LocalityGradient = "edited"


@dataclass(frozen=True, kw_only=True)
class RewardTerms:
    """Losses of one step, undecayed; index j of a list is the batch j steps back.

    Attributes:
        equivalence: Sum over loss groups of the token-mean cross-entropy.
        divergence: Sum over loss groups of the token-mean KL, without λ_loc.
        total: The decayed, weighted sum that was differentiated.
    """

    equivalence: list[float]
    divergence: list[float]
    total: float


class ReferenceCache:
    """Log-probabilities of the unedited model at answer positions, kept within a byte budget."""

    def __init__(self, budget: int = 1 << 30) -> None:
        self._budget = budget
        self._held = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, model: EditableModel, samples: Sequence[Sample]) -> list[Tensor]:
        """(a, vocabulary) log-probabilities of each sample under the unedited weights."""
        keys = [s.key + s.labels.numpy().tobytes() for s in samples]
        missing = [i for i, key in enumerate(keys) if key not in self._kept]
        fresh: dict[bytes, Tensor] = {}
        if missing:
            with model.weights.unedited():
                computed = log_probabilities(model, [samples[i] for i in missing])
            fresh = {keys[i]: value for i, value in zip(missing, computed, strict=True)}
        found = [fresh[key] if key in fresh else self._touch(key) for key in keys]
        for key, value in fresh.items():
            self._kept[key] = value
            self._held += value.nbytes
        while self._held > self._budget and self._kept:
            self._held -= self._kept.popitem(last=False)[1].nbytes
        return found

    def _touch(self, key: bytes) -> Tensor:
        self._kept.move_to_end(key)
        return self._kept[key]


@torch.no_grad()
def log_probabilities(model: EditableModel, samples: Sequence[Sample]) -> list[Tensor]:
    """(a, vocabulary) log-probabilities at the answer positions of each sample, current weights."""
    found: list[Tensor] = [torch.empty(0)] * len(samples)
    for chunk, values in model.log_probabilities(samples):
        counts = [len(s.answer_ids) for s in chunk.samples]
        for i, part in zip(chunk.index.tolist(), values.split(counts), strict=True):
            found[i] = part
    return found


@dataclass(eq=False)
class _Remembered:
    """A batch inside the backtracking window, with the reference of its unrelated prompts."""

    batch: EditBatch
    reference: list[Tensor]


@dataclass(eq=False)
class _Item:
    """One prompt of the reward pass."""

    sample: Sample
    age: int
    token_weight: float
    reference: Tensor | None = field(default=None)


class Reward:
    """Reward of consecutive batches of one trajectory.

    For each batch: `observe` it before its edit is merged, then call `backward` after the merge.

    Args:
        model: The model being edited.
        config: What the reward is made of.
        references: Where the unedited model's log-probabilities are kept between trajectories.
    """

    def __init__(
        self, model: EditableModel, config: RewardConfig, references: ReferenceCache
    ) -> None:
        self._model = model
        self._config = config
        self._references = references
        self._window: deque[_Remembered] = deque(maxlen=config.depth)

    def observe(self, batch: EditBatch) -> None:
        """Take a batch into the window, with its reference."""
        samples = batch.unrelated.samples
        if self._config.kl_reference == "pretrained":
            reference = self._references.get(self._model, samples)
        else:
            # Older batches already hold their logits under W_{t-1}: those of the last reward pass.
            reference = log_probabilities(self._model, samples)
        self._window.appendleft(_Remembered(batch, reference))

    def backward(self, shifts: Shifts) -> RewardTerms:
        """Score the window on the current weights; gradients collect in the shifts' leaves.

        Only the graph of one chunk is alive at a time, so memory does not grow with the depth.
        """
        equivalent, unrelated = self._items()
        terms = RewardTerms(
            equivalence=[0.0] * len(self._window),
            divergence=[0.0] * len(self._window),
            total=0.0,
        )
        if self._config.locality_gradient == "edited":
            passes = [(equivalent + unrelated, True)]
        else:
            passes = [(equivalent, True), (unrelated, False)]
        total = 0.0
        for items, input_gradient in passes:
            with torch.enable_grad(), traced(self._model, shifts, input_gradient=input_gradient):
                total += self._run(items, terms)
        return RewardTerms(equivalence=terms.equivalence, divergence=terms.divergence, total=total)

    def _items(self) -> tuple[list[_Item], list[_Item]]:
        equivalent: list[_Item] = []
        unrelated: list[_Item] = []
        for age, entry in enumerate(self._window):
            equivalent += _items_of(entry.batch.equivalent, age, None)
            unrelated += _items_of(entry.batch.unrelated, age, entry.reference)
        return equivalent, unrelated

    def _run(self, items: list[_Item], terms: RewardTerms) -> float:
        model, config = self._model, self._config
        token_weights = torch.tensor([i.token_weight for i in items], dtype=torch.float64)
        ages = torch.tensor([i.age for i in items])
        is_kl = torch.tensor([i.reference is not None for i in items])
        coefficients = [1.0 if i.reference is None else config.loc_coef for i in items]
        factors = torch.tensor(coefficients, dtype=torch.float64) * config.decay ** ages.double()
        latest: dict[int, Tensor] = {}
        total = 0.0
        for chunk in model.chunks([i.sample for i in items]):
            logits = model.trunk.logits(chunk).to(model.compute_dtype)
            references = [items[i].reference for i in chunk.index.tolist()]
            kl_rows = is_kl[chunk.row_sample]
            losses = row_losses(logits, chunk.labels.to(logits.device), kl_rows, references)
            weight = token_weights[chunk.row_sample]
            scaled = (weight * factors[chunk.row_sample]).to(losses)
            loss = losses @ scaled
            loss.backward()
            total += float(loss.detach())
            plain = losses.detach().double().cpu() * weight
            age = ages[chunk.row_sample]
            for j in range(len(self._window)):
                terms.equivalence[j] += float(plain[(age == j) & ~kl_rows].sum())
                terms.divergence[j] += float(plain[(age == j) & kl_rows].sum())
            if config.kl_reference == "previous":
                counts = [len(s.answer_ids) for s in chunk.samples]
                values = F.log_softmax(logits.detach(), dim=-1).split(counts)
                latest.update(zip(chunk.index.tolist(), values, strict=True))
        if latest:
            self._renew_references(items, latest)
        return total

    def _renew_references(self, items: list[_Item], latest: dict[int, Tensor]) -> None:
        """Under `previous`, this step's edited log-probabilities are the next step's reference."""
        fresh: list[list[Tensor]] = [[] for _ in self._window]
        for i, item in enumerate(items):
            if item.reference is not None:
                fresh[item.age].append(latest[i])
        for entry, reference in zip(self._window, fresh, strict=True):
            if reference:
                entry.reference = reference


def _items_of(phase: Phase, age: int, references: list[Tensor] | None) -> list[_Item]:
    return [
        _Item(sample, age, weight, references[i] if references is not None else None)
        for i, (sample, weight) in enumerate(
            zip(phase.samples, phase.weights.tolist(), strict=True)
        )
    ]


def row_losses(
    logits: Tensor, labels: Tensor, kl_rows: Tensor, references: Sequence[Tensor | None]
) -> Tensor:
    """(rows,) cross-entropy, or KL(reference ‖ model) where `kl_rows`; both in one soft-max.

    Args:
        logits: (rows, vocabulary); may carry a graph.
        labels: (rows,) int64, the token to predict; not looked at where `kl_rows`.
        kl_rows: (rows,) bool, rows scored by divergence in place of cross-entropy.
        references: Log-probabilities (a, vocabulary) whose concatenation matches the divergence
            rows in order; None for samples scored by cross-entropy.
    """
    log_p = F.log_softmax(logits, dim=-1)
    if not bool(kl_rows.any()):
        return -log_p.gather(1, labels[:, None]).squeeze(1)
    kl_rows = kl_rows.to(logits.device)
    reference = torch.cat([r for r in references if r is not None]).to(log_p)
    losses = log_p.new_zeros(len(log_p))
    divergence = (reference.exp() * (reference - log_p[kl_rows])).sum(-1)
    losses = losses.index_put((kl_rows.nonzero().flatten(),), divergence)
    plain = (~kl_rows).nonzero().flatten()
    if len(plain):
        picked = log_p[plain].gather(1, labels[plain, None]).squeeze(1)
        losses = losses.index_put((plain,), -picked)
    return losses
