"""GRACE: a codebook of corrections at one linear layer (arXiv 2211.11031).

An edit that the model gets wrong becomes an entry: the linear's input h at the prompt's last token,
a radius, and a value that takes the place of the linear's output there, trained to give the target.
Prompts whose input lies within the radius are answered by the entry, all others by the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rledit.editors.base import State
from rledit.editors.choices import check_choices
from rledit.editors.codebook import COMPARED_BYTES, Codebook, Replaces, mean_label, target_of
from rledit.editors.conventions import FROM_RECIPE, UntrainedRecipe, take_from_recipe
from rledit.editors.overlay_editor import OverlayEditor
from rledit.editors.repeated_passes import RepeatedPasses
from rledit.finite import require_finite
from rledit.lazy_torch import F, Tensor, torch
from rledit.model import EditableModel
from rledit.protocols import read
from rledit.tokenization import EditBatch, Sample

Compares = Literal["ids", "mean"]
MARGIN = 1e-5
"""Between the radii of two entries that are parted."""
_SETTINGS: dict[str, dict[str, Any]] = {
    "official": {"replaces": "prompt", "compares": "mean"},
    "paper": {"replaces": "last", "compares": "ids"},
}


@dataclass(frozen=True, kw_only=True)
class GRACEConfig:
    """GRACE's settings.

    Attributes:
        modules: The linear; exactly one.
        reference: The recipe. `official` repeats the authors' release: every position of the prompt
            is replaced, and targets count as equal where the means of their label ids are.
            `paper` replaces the last position and compares targets by their tokens. It decides the
            settings whose default is the recipe's.
        radius: ε of a new entry, in units of the linear's inputs: it has to be searched anew for
            every model and layer.
        steps: Adam steps on a value.
        lr: Adam's learning rate.
        start: A value's start: uniform in (0, 1) (`cold`), or the linear's own output (`warm`).
        only_errors: Write only what the model gets wrong, as published. Off: every edit.
        replaces: Positions whose output is the value: the prompt's `last`, the whole `prompt`, or
            `all`, the answer's too.
        compares: What makes two targets the same: their token `ids`, or the `mean` of their labels
            with −100 for every token of the prompt before, as the release has it.
        seed: Of the cold starts.
    """

    modules: tuple[str, ...]
    reference: UntrainedRecipe = "paper"
    radius: float = 1.0
    steps: int = 100
    lr: float = 1.0
    start: Literal["cold", "warm"] = "cold"
    only_errors: bool = True
    replaces: Replaces = FROM_RECIPE
    compares: Compares = FROM_RECIPE
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        take_from_recipe(self, _SETTINGS[self.reference])


@dataclass(eq=False)
class _Chosen:
    """An edit whose entry is chosen and whose value is still to be trained."""

    sample: Sample
    entry: int


@dataclass(eq=False)
class _Counts:
    """What a batch came to."""

    known: int = 0
    added: int = 0
    split: int = 0
    widened: int = 0
    losses: list[float] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """All of it by metric name."""
        counts = ("known", "added", "split", "widened")
        found = {f"edits_{name}": float(getattr(self, name)) for name in counts}
        if self.losses:
            found["final_loss"] = sum(self.losses) / len(self.losses)
        return found


class GRACE(OverlayEditor):
    """General retrieval adaptors for continual editing."""

    name = "grace"
    checked = {"properties": "test_two_targets_part_a_ball_and_each_key_finds_its_own"}
    Config = GRACEConfig
    config: GRACEConfig
    memory: Codebook

    def __init__(self, model: EditableModel, config: GRACEConfig) -> None:
        super().__init__(model, config)
        self._generator = torch.Generator().manual_seed(config.seed)

    @classmethod
    def passes_of(cls, config: GRACEConfig) -> float:
        """The steps of a value."""
        return float(config.steps)

    @classmethod
    def bytes_of(cls, config: GRACEConfig, shape: tuple[int, int], n_edits: int) -> float:
        """A key, a value, a radius and a label for every edit, and the keys that are compared."""
        return n_edits * (4.0 * sum(shape) + 16.0) + min(8.0 * shape[0] * n_edits, COMPARED_BYTES)

    def make_memory(self) -> Codebook:
        """An empty codebook."""
        return Codebook(self.model, self.module, self.config.replaces)

    def write(self, batch: EditBatch) -> dict[str, float]:
        """Choose an entry for every edit in turn, and train the values.

        Values of one batch are trained together where nothing asks for them before: they are
        disjoint parameters, and Adam works element by element.
        """
        memory, counts, waiting = self.memory, _Counts(), list[_Chosen]()
        samples = batch.edit.samples
        if not memory.edited:  # also after the memory was emptied
            self._generator.manual_seed(self.config.seed)
        keys = memory.summaries([s.prompt for s in samples])
        before = memory.decide(keys).tolist()
        known = self._known(samples)
        written = set[int]()  # entries whose values this batch trains
        for i, (sample, key) in enumerate(zip(samples, keys, strict=True)):
            now = int(memory.decide([key])[0])
            if self.config.only_errors and (now != before[i] or now in written):
                # An edit of this batch has changed what answers the prompt.
                self._train(waiting, counts)
                known[i] = self._known([sample])[0]
            memory.edited.append(target_of(sample))
            counts.known += known[i]
            entry = now if known[i] else self._choose(sample, key, counts)
            memory.owners.append(entry)
            if not known[i]:
                if entry in _entries(waiting):
                    self._train(waiting, counts)
                waiting.append(_Chosen(sample, entry))
                written.add(entry)
        self._train(waiting, counts)
        return counts.metrics()

    def _known(self, samples: Sequence[Sample]) -> list[bool]:
        """Whether an edit is left out: the model, with its memory, gives every token already."""
        if not self.config.only_errors:
            return [False] * len(samples)
        return [bool((r.predicted == r.expected).all()) for r in read(self.model, samples)]

    def _choose(self, sample: Sample, key: Tensor, counts: _Counts) -> int:
        """The entry of an edit: a new one, or one of the same target that is widened."""
        memory, start = self.memory, self.config.radius
        if not memory.entries:
            counts.added += 1
            return memory.add(key, self._start(key), start, sample)
        places, distances = memory.nearest(key[None])
        nearest, distance = int(places[0]), float(distances[0])
        if distance > start + float(memory.radii[nearest]):
            counts.added += 1
            return memory.add(key, self._start(key), start, sample)
        if not self._same(sample, nearest):
            counts.split += 1
            memory.radii[nearest] = distance / 2 - MARGIN
            return memory.add(key, self._start(key), distance / 2, sample)
        counts.widened += 1
        memory.radii[nearest] = max(float(memory.radii[nearest]), distance)
        return nearest

    def _same(self, sample: Sample, entry: int) -> bool:
        """Whether an edit has the target of an entry."""
        if self.config.compares == "ids":
            return self.memory.targets[entry] == target_of(sample)
        return mean_label(sample) == float(self.memory.means[entry])

    @torch.no_grad()
    def _start(self, key: Tensor) -> Tensor:
        """(d_out,), where the training of a value begins."""
        if self.config.start == "cold":
            return torch.rand(self.model.shape(self.module)[1], generator=self._generator)
        linear = self.model.linear(self.module)
        kind = self.model.weights.parameter(self.module).dtype
        with self.memory.off():
            found: Tensor = linear(key.to(self.model.device, kind)[None, None])
        return found[0, 0]

    def _train(self, waiting: list[_Chosen], counts: _Counts) -> None:
        """Train the values of the waiting edits, each on its own target, and write them."""
        if not waiting:
            return
        memory, samples = self.memory, [chosen.sample for chosen in waiting]
        entries = torch.tensor(_entries(waiting), device=self.model.device)
        values = memory.values[entries].clone().requires_grad_()
        optimiser = torch.optim.Adam([values], lr=self.config.lr)
        losses = torch.zeros(0)
        passes = RepeatedPasses(self.model, samples)
        with memory.training(values):
            for _ in range(self.config.steps):
                losses, values.grad = self._gradient(passes, values)
                optimiser.step()
        memory.values[entries] = values.detach()
        counts.losses += losses.tolist()
        waiting.clear()

    def _gradient(self, passes: RepeatedPasses, values: Tensor) -> tuple[Tensor, Tensor]:
        """(samples,) mean loss of each target, and the gradient of their sum, on every rank."""
        model, samples = self.model, passes.samples
        losses = torch.zeros(len(samples), dtype=torch.float64)
        total = torch.zeros_like(values)
        for part in passes.parts:
            of_row = part.micro_batch.row_sample
            logits = passes.logits(part)
            with torch.enable_grad():
                each = F.cross_entropy(logits, part.labels, reduction="none")
                counts = torch.bincount(of_row, minlength=len(samples))
                each = each / counts[of_row].to(each)
                (gradient,) = torch.autograd.grad(each.sum(), values)
            total += gradient
            losses.index_add_(0, of_row, each.detach().double().cpu())
        for whole in (losses, total):
            model.ranks.all_reduce_(whole)
        require_finite({"edit_loss": float(losses.sum())}, "the loss of a value", model, samples)
        return losses, total

    def state_dict(self) -> State:
        """The codebook, and the generator of cold starts."""
        return {**super().state_dict(), "generator": self._generator.get_state().clone()}

    def load_state_dict(self, state: State) -> None:
        """Put a saved state back."""
        super().load_state_dict(state)
        self._generator.set_state(state["generator"].clone())


def _entries(waiting: Sequence[_Chosen]) -> list[int]:
    return [chosen.entry for chosen in waiting]
