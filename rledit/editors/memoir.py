"""MEMOIR: a residual matrix in which every edit has inputs of its own (arXiv 2506.07899).

A prompt's mask names k inputs of the linear. An edit trains the columns of its prompt's mask and no
others; a prompt whose mask overlaps with an edit's is answered through that edit's mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rledit.editors.choices import check_choices
from rledit.editors.codebook import target_of
from rledit.editors.conventions import FROM_RECIPE, UntrainedRecipe, take_from_recipe
from rledit.editors.repeated_passes import RepeatedPasses
from rledit.editors.residual_memory import ResidualMemory
from rledit.editors.templated_editor import TemplatedEditor, settled
from rledit.finite import require_finite
from rledit.lazy_torch import Tensor, torch
from rledit.locate.contexts import make_contexts
from rledit.model import EditableModel
from rledit.overlay import OverlayError
from rledit.records import Edit

_SETTINGS: dict[str, dict[str, Any]] = {
    "official": {"decay": 1e-5, "skip_first": False},
    "paper": {"decay": 0.0, "skip_first": True},
}
BACKGROUND_PROMPTS = 100


@dataclass(frozen=True, kw_only=True)
class MEMOIRConfig:
    """MEMOIR's settings.

    Attributes:
        modules: The linear; exactly one.
        reference: The recipe. `official` repeats the authors' release; `paper` mends its defects.
            It decides the settings whose default is the recipe's.
        k: Inputs of a mask; the release has 4,096 of Llama-3's 14,336. None: as large a share.
        overlap: τ; share of its own mask that a prompt has to have in common with an edit's. Two
            random masks have k / d_in in common.
        lr: Rate of the gradient steps.
        steps: Gradient steps on an edit at most.
        clip: Largest norm of a gradient.
        contexts: Templates that edits are also trained behind; None: ten that the unedited model
            writes behind five openers.
        decay: Weight decay of the steps; the release's shrinks all of the matrix at every one.
        skip_first: Leave the first token out of a prompt's mean.
        seed: Of the permutation.
    """

    modules: tuple[str, ...]
    reference: UntrainedRecipe = "paper"
    k: int | None = None
    overlap: float = 0.4
    lr: float = 1.0
    steps: int = 30
    clip: float = 1.0
    contexts: tuple[str, ...] | None = None
    decay: float = FROM_RECIPE
    skip_first: bool = FROM_RECIPE
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        take_from_recipe(self, _SETTINGS[self.reference])
        if self.contexts is not None:
            make_contexts(self.contexts)  # refuses templates without a place for the prompt


class MEMOIR(TemplatedEditor):
    """Residual memory with a mask of inputs for every edit."""

    name = "memoir"
    checked = {
        "reference": "test_memoir_equals_a_plain_computation_in_float64",
        "properties": "test_an_edit_of_a_disjoint_mask_leaves_an_earlier_answer_bit_by_bit",
    }
    Config = MEMOIRConfig
    config: MEMOIRConfig
    memory: ResidualMemory

    def __init__(self, model: EditableModel, config: MEMOIRConfig) -> None:
        super().__init__(model, config)
        d_in = model.shape(self.module)[0]
        if not 0 < self.memory.k <= d_in:
            raise OverlayError(
                f"memoir: a mask of k = {config.k} inputs does not fit {self.module}, which has "
                f"{d_in}"
            )

    @classmethod
    def passes_of(cls, config: MEMOIRConfig) -> float:
        """The steps, over the bare prompt and the templates."""
        return float(config.steps * (11 if config.contexts is None else 1 + len(config.contexts)))

    @classmethod
    def bytes_of(cls, config: MEMOIRConfig, shape: tuple[int, int], n_edits: int) -> float:
        """The matrix, the columns under training, and the masks, as bytes and as float32."""
        return 8.0 * shape[0] * shape[1] + 5.0 * n_edits * shape[0]

    def make_memory(self) -> ResidualMemory:
        """W_m = 0 and no mask."""
        c, d_in = self.config, self.model.shape(self.module)[0]
        k = max(1, round(d_in * 4096 / 14336)) if c.k is None else c.k
        return ResidualMemory(self.model, self.module, k, c.overlap, c.skip_first, c.seed)

    def train(self, edit: Edit) -> float:
        """Train one edit into the columns of its prompt's mask."""
        memory, config = self.memory, self.config
        if not memory.entries:
            memory.background = self._background()
        samples = self.templated(edit)
        mask = memory.mask_of(memory.summaries([samples[0].prompt]))
        columns = mask[0].nonzero().flatten().to(self.model.device)
        weight = memory.weight[:, columns].clone().requires_grad_()
        losses: list[float] = []
        made = 0
        passes = RepeatedPasses(self.model, samples)
        with memory.training(columns, weight, len(samples)):
            for _ in range(config.steps):
                loss, gradient = self.likelihood(passes, weight)
                losses.append(loss)
                if settled(losses):
                    break
                made += 1
                self._step(weight, gradient)
        require_finite({"edit_loss": losses[-1]}, "the loss of an edit", self.model, samples)
        if config.decay:
            memory.weight *= (1 - config.lr * config.decay) ** made
        memory.weight[:, columns] = weight.detach()
        memory.masks = torch.cat([memory.masks, mask])
        memory.edited.append(target_of(samples[0]))
        return losses[-1]

    @torch.no_grad()
    def _step(self, weight: Tensor, gradient: Tensor) -> None:
        """One step along the clipped gradient."""
        config = self.config
        gradient *= min(1.0, config.clip / max(1e-12, float(gradient.norm())))
        if config.decay:
            gradient = gradient + config.decay * weight
        weight -= config.lr * gradient

    def _background(self) -> Tensor:
        """(d_in,) float64, the mean over unrelated prompts of the means of their inputs."""
        prompts: list[Tensor] = []
        number = 0
        while len(prompts) < BACKGROUND_PROMPTS and number < BACKGROUND_PROMPTS:
            prompts += _new(prompts, [s.prompt for s in self.unrelated(number)])
            number += 1
        summaries = self.memory.summaries(prompts[:BACKGROUND_PROMPTS])
        return torch.stack(list(summaries)).mean(0)


def _new(known: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
    """Those of the found prompts that are not known yet."""
    keys = {tuple(prompt.tolist()) for prompt in known}
    own = {tuple(prompt.tolist()): prompt for prompt in found}
    return [prompt for key, prompt in own.items() if key not in keys]
