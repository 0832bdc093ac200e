"""WISE: edits go into side memories, to which prompts are routed (arXiv 2405.14768).

A side memory W′ starts as the linear's W. Edits of a shard are trained into a random part of its
entries, with hinges that hold what W′ does to their prompts (Δ_in) above what it does to unrelated
ones (Δ_out). Finished shards are stored and merged; a prompt is answered by the memory that moves
it most, where that is far enough, else by W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rledit.editors.choices import check_choices
from rledit.editors.conventions import FROM_RECIPE, UntrainedRecipe, take_from_recipe
from rledit.editors.repeated_passes import RepeatedPasses
from rledit.editors.side_memories import PromptRows, Rivals, SideMemories, Statistic
from rledit.editors.templated_editor import TemplatedEditor, settled
from rledit.finite import require_finite
from rledit.lazy_torch import Tensor, torch
from rledit.locate.contexts import make_contexts
from rledit.records import Edit

_SETTINGS: dict[str, dict[str, Any]] = {
    "official": {
        "decay": 1e-5,
        "statistic": "activation",
        "rivals": "current",
        "label_before": True,
    },
    "paper": {"decay": 0.0, "statistic": "shift", "rivals": "passing", "label_before": False},
}


@dataclass(frozen=True, kw_only=True)
class WISEConfig:
    """WISE's settings; the defaults are the release's for Llama-2 and Mistral.

    Attributes:
        modules: The linear; exactly one.
        reference: The recipe. `official` repeats the authors' release; `paper` has the published
            equations with its defects mended. It decides the settings whose default is the
            recipe's.
        lr: Rate of the gradient steps.
        steps: Gradient steps on an edit at most.
        alpha: Δ_out above which an unrelated prompt costs.
        beta: Δ_in below which an edit costs.
        gamma: Distance between the two below which it costs.
        ratio: r; a memory answers where Δ is larger than r times the smallest Δ_in of its edits.
        mask_ratio: ρ; share of a side memory's entries that a shard may change.
        save_freq: Edits of a shard.
        merge_freq: Edits after which the shards since the last merge become one memory.
        variant: `retrieve` keeps every merged memory, `merge` a single one.
        density: Share of each memory's entries that merging keeps.
        contexts: Templates that edits are also trained behind; None: ten that the unedited model
            writes behind five openers.
        decay: Weight decay of the steps. The release's pulls all of W′ towards 0, entries outside
            the mask too.
        statistic: Δ, see `SideMemories`.
        rivals: Whom a stored memory has to beat, see `SideMemories`.
        label_before: Let a token before each target count in the mean loss, without one.
        seed: Of the masks; the n-th shard's depends on it and on n.
    """

    modules: tuple[str, ...]
    reference: UntrainedRecipe = "paper"
    lr: float = 1.0
    steps: int = 70
    alpha: float = 5.0
    beta: float = 20.0
    gamma: float = 10.0
    ratio: float = 0.88
    mask_ratio: float = 0.2
    save_freq: int = 500
    merge_freq: int = 1000
    variant: Literal["retrieve", "merge"] = "retrieve"
    density: float = 0.53
    contexts: tuple[str, ...] | None = None
    decay: float = FROM_RECIPE
    statistic: Statistic = FROM_RECIPE
    rivals: Rivals = FROM_RECIPE
    label_before: bool = FROM_RECIPE
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        take_from_recipe(self, _SETTINGS[self.reference])
        if self.contexts is not None:
            make_contexts(self.contexts)  # refuses templates without a place for the prompt
        if self.save_freq < 1 or self.merge_freq % self.save_freq:
            raise ValueError(
                f"merge_freq ({self.merge_freq}) must be a multiple of save_freq "
                f"({self.save_freq}): whole shards are merged"
            )


class WISE(TemplatedEditor):
    """Side memories with routing."""

    name = "wise"
    checked = {
        "reference": "test_wise_steps_equal_a_plain_computation_in_float64",
        "properties": "test_merging_equal_memories_gives_that_memory_in_any_order",
    }
    Config = WISEConfig
    config: WISEConfig
    memory: SideMemories
    _drawn_mask: tuple[int, Tensor] | None = None
    """A shard and its mask."""

    @classmethod
    def passes_of(cls, config: WISEConfig) -> float:
        """The steps, over the bare prompt and the templates."""
        return float(config.steps * (11 if config.contexts is None else 1 + len(config.contexts)))

    @classmethod
    def bytes_of(cls, config: WISEConfig, shape: tuple[int, int], n_edits: int) -> float:
        """The side memories, with gradient, mask and a copy of the one that is trained."""
        merges = 1 if config.variant == "merge" else n_edits // config.merge_freq
        pending = min(n_edits, config.merge_freq) // config.save_freq
        return 4.0 * shape[0] * shape[1] * (4 + merges + pending)

    def make_memory(self) -> SideMemories:
        """No side memory yet."""
        c = self.config
        return SideMemories(self.model, self.module, c.ratio, c.statistic, c.rivals)

    def train(self, edit: Edit) -> float:
        """Train one edit into the side memory of the shard under way."""
        memory, config = self.memory, self.config
        samples = self.templated(edit)
        inside = memory.prompt_rows(memory.summaries([s.prompt for s in samples]))
        other = next(self.unrelated(len(memory.shard_of)))
        outside = memory.prompt_rows(memory.summaries([other.prompt]))
        mask = self._mask()
        difference = memory.current.clone().requires_grad_()
        extra = len(samples) if config.label_before else 0
        passes = RepeatedPasses(self.model, samples)
        losses: list[float] = []
        with memory.training(difference, len(samples)):
            for _ in range(config.steps):
                loss, gradient = self.likelihood(passes, difference, extra)
                hinges = self._hinges(difference, inside, outside)
                (more,) = torch.autograd.grad(hinges, difference)
                losses.append(loss + float(hinges.detach()))
                if settled(losses):
                    break
                with torch.no_grad():
                    change = mask * (gradient + more)
                    if config.decay:
                        change += config.decay * (self._weight() + difference)
                    difference -= config.lr * change
        require_finite({"edit_loss": losses[-1]}, "the loss of an edit", self.model, samples)
        memory.current = difference.detach()
        with torch.no_grad():
            reached = float(memory.moved(inside, memory.current).mean())
        memory.threshold = min(memory.threshold, reached)
        memory.shard_of.append(memory.shard)
        self._file()
        return losses[-1]

    def _hinges(self, difference: Tensor, inside: PromptRows, outside: PromptRows) -> Tensor:
        """[Δ_out − α]₊ + [β − Δ_in]₊ + [γ − (Δ_in − Δ_out)]₊, each a mean where positive."""
        config, memory = self.config, self.memory
        with torch.enable_grad():
            delta_in = memory.moved(inside, difference)
            delta_out = memory.moved(outside, difference)
            parts = (
                delta_out - config.alpha,
                config.beta - delta_in,
                config.gamma - (delta_in - delta_out),
            )
            return torch.stack([_positive_mean(part) for part in parts]).sum()

    def _mask(self) -> Tensor:
        """(d_out, d_in), 1 where the shard under way may change an entry; drawn once a shard."""
        config, memory = self.config, self.memory
        shard, mask = self._drawn_mask or (-1, memory.current)
        if shard != memory.shard:
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + memory.shard)
            drawn = torch.rand(memory.current.shape, generator=generator) < config.mask_ratio
            shard, mask = self._drawn_mask = memory.shard, drawn.to(memory.current)
        return mask

    def _weight(self) -> Tensor:
        return self.model.weights.original(self.module).to(self.memory.current)

    def _file(self) -> None:
        """Store a shard that is full, and merge where it is time."""
        config, memory = self.config, self.memory
        done = len(memory.shard_of)
        if done % config.save_freq:
            return
        memory.store()
        if done % config.merge_freq == 0:
            memory.merge(config.merge_freq // config.save_freq, config.density)
            if config.variant == "merge":
                memory.merge(len(memory.stored), config.density)


def _positive_mean(values: Tensor) -> Tensor:
    """Mean of the positive values; 0, with its graph, where none is."""
    count = (values > 0).sum().clamp_min(1)
    return values.clamp_min(0).sum() / count
