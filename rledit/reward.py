"""The reward of one batch of a trajectory and its gradient with respect to the batch's shift.

    L_t = Σ_{j=0}^{min(k-1, t)} μ^j [ L_e(batch t-j) + λ_loc KL(batch t-j) ]  (+ η_reg ‖S_t‖²)

L_e is the cross-entropy of the target on the equivalent prompts, KL compares the answers of
unrelated prompts with a reference model, both under the weights after the edit; terms with j ≥ 1
are the paper's memory backtracking (RLEdit, arXiv 2502.05759, section 4). The norm term is a
function of the shift alone and is added by the editor. Of our own is a third term, the
cross-entropy on the edited prompts themselves, whose weight the publication has at 0.

Where several ranks share the work, each scores the prompts of its shard, and gradients and losses
are summed. A batch's prompts are sharded once, when it enters the window: the rank that
scored a prompt under W_{t-1} has its reference at W_t.

A trajectory that was interrupted goes on bit by bit. Every number therefore depends on the weights,
the window and its references alone, not on what caches came to hold on the way: a batch's prompts
are run through the frozen layers together when it enters the window, and again when it is put back;
with a prefix store, where prefixes do not depend on their company, they are run once.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from rledit.lazy_torch import F, Tensor, torch
from rledit.model import SINGLE_PASS_TOKENS, EditableModel
from rledit.ranks import shard
from rledit.shift import Shifts, sum_gradients, traced
from rledit.tokenization import EditBatch, Phase, Sample

KLReference = Literal["pretrained", "previous"]
LocalityGradient = Literal["edited", "unedited"]
Kind = Literal["equivalent", "edited", "unrelated"]


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What the reward is made of.

    Attributes:
        loc_coef: λ_loc, weight of the divergence on unrelated prompts.
        equivalent_coef: Weight of the cross-entropy on equivalent prompts.
        prompt_coef: Weight of the cross-entropy on the edited prompts themselves.
        decay: μ, weight of a batch j steps back is μ^j.
        depth: k, batches scored at each step, the current one counted.
        window_share: Share of the older batches' prompts that a step scores, drawn anew at each
            step; their losses count by its inverse. Needs `kl_reference: pretrained`.
        seed: Seed of that draw.
        kl_reference: `pretrained` compares with the unedited model W_0, `previous` with W_{t-1}.
        locality_gradient: `edited` takes the divergence's gradient at the edited weights;
            `unedited` repeats the release, which has un-edited them by then.
    """

    loc_coef: float
    equivalent_coef: float = 1.0
    prompt_coef: float = 0.0
    decay: float = 1.0
    depth: int = 1
    window_share: float = 1.0
    seed: int = 0
    kl_reference: KLReference = "pretrained"
    locality_gradient: LocalityGradient = "edited"


@dataclass(frozen=True, kw_only=True)
class RewardTerms:
    """Losses of one step, undecayed; index j of a list is the batch j steps back.

    Attributes:
        equivalence: Sum over loss groups of the token-mean cross-entropy on equivalent prompts.
        edited: The same on the edited prompts; 0 where they do not count.
        divergence: Sum over loss groups of the token-mean KL, without λ_loc.
        total: The decayed, weighted sum that was differentiated.
    """

    equivalence: list[float]
    edited: list[float]
    divergence: list[float]
    total: float


@torch.no_grad()
def final_states(
    model: EditableModel, samples: Sequence[Sample], own: Sequence[int] | None = None
) -> list[Tensor]:
    """(a, hidden) input of the output embedding at the answer positions of each sample.

    Args:
        model: The model.
        samples: The samples.
        own: Places of those that this rank runs and gets; None: all.
    """
    own = range(len(samples)) if own is None else own
    found: dict[int, Tensor] = {}
    for micro_batch in model.own_micro_batches(samples, own):
        states = model.prefix_cache.states(micro_batch)
        places = micro_batch.index.tolist()
        counts = [len(samples[i].answer_ids) for i in places]
        for i, part in zip(places, states.split(counts), strict=True):
            # A copy: a view would hold the whole micro-batch's memory.
            found[i] = part.clone()
    return [found[i] for i in own]


@torch.no_grad()
def log_reference(model: EditableModel, references: Sequence[Tensor | None]) -> Tensor | None:
    """(rows, vocabulary) log-probabilities of the references there are, one after another.

    Every rank of a sharded model makes this call; the output embedding runs if any has one.
    """
    states = [r for r in references if r is not None]
    if not model.passes(int(bool(states))):
        return None
    config: Any = model.model.config
    kind = next(model.model.parameters()).dtype
    made_up = torch.zeros(1, config.hidden_size, dtype=kind, device=model.device)
    logits = model.prefix_cache.logits_of(torch.cat(states or [made_up]))
    return F.log_softmax(logits.to(model.compute_dtype), dim=-1) if states else None


@dataclass(eq=False)
class _Remembered:
    """A batch inside the backtracking window.

    Attributes:
        batch: The batch.
        reference: References of those of its unrelated prompts that fall to this rank.
        first: The rank that gets its longest sample, see `rledit.ranks.shard`.
    """

    batch: EditBatch
    reference: list[Tensor]
    first: int = 0


@dataclass(eq=False)
class _Item:
    """One prompt of the reward pass."""

    sample: Sample
    age: int
    token_weight: float
    kind: Kind
    reference: Tensor | None = field(default=None)


class Reward:
    """Reward of consecutive batches of one trajectory.

    For each batch: `observe` it before its edit is merged, then call `backward` after the merge.

    Args:
        model: The model being edited.
        config: What the reward is made of.
        trajectory: Number of the trajectory, so that each draws prompts of its own.

    Attributes:
        loc_coef: λ_loc from now on; the configuration's, unless somebody sets another.
    """

    def __init__(self, model: EditableModel, config: RewardConfig, trajectory: int = 0) -> None:
        self._model = model
        self._config = config
        self._trajectory = trajectory
        self.loc_coef = config.loc_coef
        self._window: deque[_Remembered] = deque(maxlen=config.depth)
        self._next_deal = 0
        self._recorded = (
            False  # whether the prefix cache holds the window's prefixes, and no others
        )

    def observe(self, batch: EditBatch) -> None:
        """Take a batch into the window, with its reference."""
        first = self._next_deal
        self._next_deal += len(batch.equivalent) + len(batch.unrelated)
        entry = _Remembered(batch, [], first)
        self._window.appendleft(entry)
        self._hold_prefixes()
        own = shard(batch.unrelated.samples, self._model.ranks, first)
        # Under `previous`, older batches already hold their logits under W_{t-1}: those of the last
        # reward pass.
        pretrained = self._config.kl_reference == "pretrained"
        with self._model.weights.unedited() if pretrained else nullcontext():
            entry.reference = final_states(self._model, batch.unrelated.samples, own)

    def state_dict(self) -> dict[str, Tensor]:
        """The window's references and deals; every rank makes this call, and gets all of them."""
        state = {
            "trajectory": torch.tensor(self._trajectory),
            "next_deal": torch.tensor(self._next_deal),
            "first": torch.tensor([entry.first for entry in self._window], dtype=torch.long),
        }
        for age, entry in enumerate(self._window):
            if len(entry.batch.unrelated):
                state[f"reference.{age}"] = self._gathered(entry)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], batches: Sequence[EditBatch]) -> None:
        """Put a saved window back.

        Args:
            state: What `state_dict` gave, on as many ranks or on others.
            batches: The batches observed so far, in order; the last ones are the window.
        """
        firsts: list[int] = state["first"].tolist()
        self._window.clear()
        self._recorded = False
        self._trajectory = int(state["trajectory"])
        self._next_deal = int(state["next_deal"])
        for age, first in enumerate(firsts):
            batch = batches[-1 - age]
            counts = [len(s.answer_ids) for s in batch.unrelated.samples]
            own = shard(batch.unrelated.samples, self._model.ranks, first)
            parts: Sequence[Tensor] = ()
            if counts:
                parts = state[f"reference.{age}"].to(self._model.device).split(counts)
            self._window.append(_Remembered(batch, [parts[i].clone() for i in own], first))

    def _gathered(self, entry: _Remembered) -> Tensor:
        """(rows, hidden) references of all of a batch's unrelated prompts, in their order."""
        ranks, samples = self._model.ranks, entry.batch.unrelated.samples
        if ranks.size == 1:
            return torch.cat(entry.reference)
        counts = [len(s.answer_ids) for s in samples]
        config: Any = self._model.model.config
        width = config.hidden_size
        kind = next(self._model.model.parameters()).dtype
        # Summed in a type that every back end sums; zeros leave the one rank's value as it is.
        whole = torch.zeros(sum(counts), width, dtype=torch.promote_types(kind, torch.float32))
        parts = whole.split(counts)
        own = shard(samples, ranks, entry.first)
        for i, reference in zip(own, entry.reference, strict=True):
            parts[i].copy_(reference)
        ranks.all_reduce_(whole)
        return whole.to(kind)

    def _hold_prefixes(self) -> None:
        """Leave in the prefix cache what depends on the window alone.

        The last bits of a prefix depend on which prompts it was recorded with. Each batch records
        all of its own anew, those that an older batch has recorded too. A window that the budget
        does not hold begins every step with an empty cache.
        """
        prefix_cache = self._model.prefix_cache
        prompts = [self._prompts(entry) for entry in self._window]
        everything = [s for groups in prompts for own in groups for s in own]
        if prefix_cache.store is not None:
            prefix_cache.keep({s.key for s in everything})  # what the store has no room for
            return
        if self._model.passes(int(not prefix_cache.fits(everything))):
            prefix_cache.clear()
            self._recorded = False
            return
        prefix_cache.keep({s.key for s in everything})
        for groups in prompts[:1] if self._recorded else reversed(prompts):
            for own in groups:
                prefix_cache.forget({s.key for s in own})
                passes = self._model.own_micro_batches(own, range(len(own)), SINGLE_PASS_TOKENS)
                prefix_cache.prefetch(passes)
        self._recorded = True

    def _prompts(self, entry: _Remembered) -> tuple[list[Sample], ...]:
        """The distinct prompts of a batch that this rank runs, those recorded together in a group.

        Edit prompts, which `rledit.capture` deals, are by themselves; not over a sharded model,
        where every pass gathers all layers below the first edited one.
        """
        batch, ranks = entry.batch, self._model.ranks
        captured = (batch.edit.samples[i] for i in shard(batch.edit.samples, ranks))
        edits = {s.key: s for s in captured}
        others: dict[bytes, Sample] = {}
        first = entry.first
        for phase in (batch.unrelated, batch.equivalent):
            own = (phase.samples[i] for i in shard(phase.samples, ranks, first))
            others |= {s.key: s for s in own if s.key not in edits}
            first += len(phase)
        if self._model.in_slices:
            return ([*edits.values(), *others.values()],)
        return list(edits.values()), list(others.values())

    def backward(self, shifts: Shifts) -> RewardTerms:
        """Score the window on the current weights; gradients collect in the shifts' leaves.

        Only the graph of one micro-batch is alive at a time, so memory does not grow with the
        depth. Gradients and losses are those of all ranks' prompts together, on every rank.
        """
        new, unrelated = self._items()
        terms = RewardTerms(
            equivalence=[0.0] * len(self._window),
            edited=[0.0] * len(self._window),
            divergence=[0.0] * len(self._window),
            total=0.0,
        )
        if self._config.locality_gradient == "edited":
            passes = [(new + unrelated, True)]
        else:
            passes = [(new, True), (unrelated, False)]
        total = 0.0
        for items, input_gradient in passes:
            with torch.enable_grad(), traced(self._model, shifts, input_gradient=input_gradient):
                total += self._run(items, terms)
        return self._summed(shifts, terms, total)

    def _items(self) -> tuple[list[_Item], list[_Item]]:
        """The prompts of the window that this step scores and that fall to this rank.

        Returns:
            Those that are to give new answers, and those that are to keep theirs.
        """
        ranks = self._model.ranks
        new: list[_Item] = []
        unrelated: list[_Item] = []
        for age, entry in enumerate(self._window):
            batch = entry.batch
            own = shard(batch.unrelated.samples, ranks, entry.first)
            taken = self._drawn(batch.unrelated, age, "unrelated")
            unrelated += _items_of(batch.unrelated, own, age, "unrelated", taken, entry.reference)
            # The second deal goes on where the first one ended.
            own = shard(batch.equivalent.samples, ranks, entry.first + len(batch.unrelated))
            taken = self._drawn(batch.equivalent, age, "equivalent")
            new += _items_of(batch.equivalent, own, age, "equivalent", taken)
            if self._config.prompt_coef:
                own = shard(batch.edit.samples, ranks)  # as they are captured
                taken = self._drawn(batch.edit, age, "edited")
                new += _items_of(batch.edit, own, age, "edited", taken)
        return new, unrelated

    def _drawn(self, phase: Phase, age: int, kind: Kind) -> list[float]:
        """What each prompt of a phase counts in this step, 0 for those that are left out.

        A function of the seed, the trajectory and the prompts observed so far: all ranks draw the
        same, and so does a trajectory that goes on after an interruption.
        """
        share = self._config.window_share
        if age == 0 or share == 1:
            return [1.0] * len(phase)
        rng = random.Random(
            f"{self._config.seed}/{self._trajectory}/{self._next_deal}/{age}/{kind}"
        )
        return [1 / share if rng.random() < share else 0.0 for _ in range(len(phase))]

    def _summed(self, shifts: Shifts, terms: RewardTerms, total: float) -> RewardTerms:
        """Sum the leaves' gradients and the losses over the ranks."""
        ranks = self._model.ranks
        sum_gradients(ranks, shifts)
        depth = len(self._window)
        parts = [*terms.equivalence, *terms.edited, *terms.divergence, total]
        losses = torch.tensor(parts, dtype=torch.float64)
        ranks.all_reduce_(losses)
        values: list[float] = losses.tolist()
        return RewardTerms(
            equivalence=values[:depth],
            edited=values[depth : 2 * depth],
            divergence=values[2 * depth : -1],
            total=values[-1],
        )

    def _run(self, items: list[_Item], terms: RewardTerms) -> float:
        """Score this rank's prompts; returns the decayed, weighted sum."""
        from rledit.losses import row_losses

        model, config = self._model, self._config
        token_weights = torch.tensor([i.token_weight for i in items], dtype=torch.float64)
        ages = torch.tensor([i.age for i in items])
        is_kl = torch.tensor([i.kind == "unrelated" for i in items], dtype=torch.bool)
        weight_of: dict[Kind, float] = {
            "equivalent": config.equivalent_coef,
            "edited": config.prompt_coef,
            "unrelated": self.loc_coef,
        }
        coefficients = torch.tensor([weight_of[i.kind] for i in items], dtype=torch.float64)
        factors = coefficients * config.decay ** ages.double()
        latest: dict[int, Tensor] = {}
        found: list[Tensor] = []
        row_items: list[Tensor] = []
        for micro_batch in model.own_micro_batches([i.sample for i in items], range(len(items))):
            top = model.prefix_cache.run(micro_batch)
            logits = top.logits.to(model.compute_dtype)
            kl_rows = is_kl[micro_batch.row_sample]
            reference = log_reference(
                model, [items[i].reference for i in micro_batch.index.tolist()]
            )
            losses = row_losses(logits, micro_batch.labels.to(logits.device), kl_rows, reference)
            states = top.states
            # Not held over the backward: each is as large as all else of a micro-batch.
            del top, logits, reference
            losses.backward((token_weights * factors)[micro_batch.row_sample].to(losses))
            found.append(losses.detach())
            row_items.append(micro_batch.row_sample)
            if config.kl_reference == "previous":
                kept = [i for i in micro_batch.index.tolist() if is_kl[i]]
                counts = [len(items[i].sample.answer_ids) for i in kept]
                renewed = states[kl_rows.to(states.device)].split(counts)
                latest.update(zip(kept, renewed, strict=True))
        if latest:
            self._renew_references(items, latest)
        if not found:
            return 0.0
        # Read back once, after the last micro-batch, so that an accelerator is not kept waiting.
        rows = torch.cat(row_items)
        plain = torch.cat(found).double().cpu() * token_weights[rows]
        sums: dict[Kind, list[float]] = {
            "equivalent": terms.equivalence,
            "edited": terms.edited,
            "unrelated": terms.divergence,
        }
        for kind, summed in sums.items():
            of_kind = torch.tensor([i.kind == kind for i in items], dtype=torch.bool)[rows]
            by_age = torch.zeros(len(summed), dtype=torch.float64)
            by_age.index_add_(0, ages[rows[of_kind]], plain[of_kind])
            for age, loss in enumerate(by_age.tolist()):
                summed[age] += loss
        return float((plain * factors[rows]).sum())

    def _renew_references(self, items: list[_Item], latest: dict[int, Tensor]) -> None:
        """Under `previous`, this step's edited states are the next step's reference."""
        fresh: list[list[Tensor]] = [[] for _ in self._window]
        for i, item in enumerate(items):
            if item.reference is not None:
                fresh[item.age].append(latest[i])
        for entry, reference in zip(self._window, fresh, strict=True):
            if reference:
                entry.reference = reference


def _items_of(
    phase: Phase,
    own: Sequence[int],
    age: int,
    kind: Kind,
    taken: Sequence[float],
    references: Sequence[Tensor] = (),
) -> list[_Item]:
    weights: list[float] = phase.weights.tolist()
    kept: Sequence[Tensor | None] = references or [None] * len(own)
    return [
        _Item(phase.samples[i], age, weights[i] * taken[i], kind, reference)
        for i, reference in zip(own, kept, strict=True)
        if taken[i]
    ]
