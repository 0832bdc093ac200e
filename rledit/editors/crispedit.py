"""CrispEdit: breadth-first fine-tuning off the directions in which the loss on ordinary text is
curved (arXiv 2602.15823).

Adam's steps on the edits are projected onto the flat directions of every matrix (see
`rledit.locate.flat_directions`), which the covariances of its inputs and output gradients on text
tell. `together` trains anew on all edits so far, as LocFT-BF does; `sequential` goes on from batch
to batch with the same Adam, and counts the tokens of the edits so far among those of the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rledit.editors.base import Editor, Need, State, Texts, prefixed, unprefixed
from rledit.editors.breadth_first import EditsSoFar, ended, shuffled_passes
from rledit.editors.conventions import FROM_RECIPE, UntrainedRecipe, take_from_recipe
from rledit.editors.finetuning import moved
from rledit.editors.own_prefixes import fresh_prefix_cache
from rledit.editors.sphere import SphereSettings
from rledit.editors.text_curvature import HeldFlat, TextCurvature
from rledit.editors.tuning import AdamState, Descent, descend
from rledit.families import layer_index
from rledit.lazy_torch import torch
from rledit.locate.covariance import KeyCovariance
from rledit.model import EditableModel
from rledit.tokenization import EditBatch, Sample

Projected = Literal["step", "gradient"]

_SETTINGS: dict[str, dict[str, Any]] = {
    "official": {"projected": "gradient", "energy": 0.8},
    "paper": {"projected": "step", "energy": 0.99},
}


@dataclass(frozen=True, kw_only=True)
class CrispEditConfig(SphereSettings):
    """CrispEdit's settings; the defaults are the release's for Llama-3-8B.

    Attributes:
        modules: Target modules.
        reference: The recipe. `official` repeats the authors' release: gradients are projected
            before Adam, whose scaling takes its steps out of the flat directions again; `paper`
            projects the steps. It decides the settings whose default is the recipe's.
        mode: `together` trains anew, from the unedited matrices, on all edits so far; `sequential`
            goes on from batch to batch of the stream.
        energy: γ; share of the loss's curvature on text that lies in the directions that are kept.
            The release's configuration has 0.99, its commands 0.8.
        passes: Passes over the edits at most.
        lr: Adam's learning rate.
        weight_decay: Adam's L2 penalty.
        batch_size: Edits per optimiser step.
        stop_loss: A mini-batch below this loss makes no step, and a pass whose mean is below it is
            the last one.
        end_token: Put EOS behind every target; the release does not.
        recompute_at: Take the covariances of text anew, on the edited model, where the change of a
            matrix since they were taken exceeds this part of its norm; the release has 0.25 as an
            option. None: never.
        projected: What is projected onto the flat directions.
        seed: Seed of the order of edits in each pass.
    """

    modules: tuple[str, ...]
    reference: UntrainedRecipe = "paper"
    mode: Literal["together", "sequential"] = "together"
    energy: float = FROM_RECIPE
    passes: int = 25
    lr: float = 5e-4
    weight_decay: float = 0.0
    batch_size: int = 32
    stop_loss: float = 0.01
    end_token: bool = False
    recompute_at: float | None = None
    projected: Projected = FROM_RECIPE
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        take_from_recipe(self, _SETTINGS[self.reference])


class CrispEdit(Editor):
    """Fine-tuning in flat directions."""

    name = "crispedit"
    Config = CrispEditConfig
    config: CrispEditConfig
    checked = {"reference": "test_batch_after_batch_against_the_equations_in_float64"}
    needs: ClassVar[frozenset[Need]] = frozenset({"statistics", "output_gradients", "texts"})
    work_kind = "tuned"

    def __init__(self, model: EditableModel, config: CrispEditConfig) -> None:
        super().__init__(model, config)
        self._so_far = EditsSoFar()
        self._curvature = TextCurvature(model, config.energy, config.recompute_at)
        self._adam: AdamState = {}

    @classmethod
    def needs_of(cls, config: CrispEditConfig) -> frozenset[Need]:
        """Texts only where covariances are taken anew."""
        return cls.needs if config.recompute_at is not None else cls.needs - {"texts"}

    def load_covariance(self, covariance: Mapping[str, KeyCovariance]) -> None:
        """Take A and B of every target module, B under its `gradients_of` name."""
        self._curvature.load(covariance)

    def load_texts(self, texts: Texts) -> None:
        """Take the source of the texts that covariances are of."""
        self._curvature.texts = texts

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Train on all edits so far, or go on with the batch's."""
        samples: Sequence[Sample] = batch.edit.samples
        if self.config.end_token:
            samples = ended(self.model, samples, self.name)
        together = self.config.mode == "together"
        if together:
            self._so_far.add(samples)
            samples = self._so_far.samples
            if not self._so_far.due(self.looked_at):
                return {"replayed": float(len(samples))}
        weights = self.model.weights
        before = {name: weights.read(name).clone() for name in weights.names}
        if together:
            weights.restore()
            self._curvature.restart()
        self._curvature.recomputed = 0
        with fresh_prefix_cache(self.model):
            losses = self._descend(samples, None if together else self._adam)
            if self.sphere is not None:
                originals = {name: weights.original(name) for name in weights.names}
                self.sphere.confine(weights, originals if together else before)
            shares = self._shares()
            if not together:
                self._so_far.batches += 1
                self._curvature.add_edits(samples)
        return {
            "edit_loss": losses[0],
            "final_loss": losses[-1],
            "shift_norm": moved(before, {name: weights.read(name) for name in before}),
            **({"replayed": float(len(samples))} if together else {}),
            **shares,
        }

    def _descend(self, samples: Sequence[Sample], adam: AdamState | None) -> list[float]:
        """Passes over edits, with an order of their own for every batch of a sequential stream."""
        config = self.config
        rule = HeldFlat(self._curvature, config.projected == "gradient")
        for name, kept in (adam or {}).items():
            if "exp_avg" in kept:  # gathered where other directions were flat
                kept["exp_avg"] = rule.gradient(name, kept["exp_avg"])
        seed = config.seed if adam is None else config.seed + self._so_far.batches
        passes = shuffled_passes(samples, config.passes, config.batch_size, seed)
        descent = Descent(
            lr=config.lr, weight_decay=config.weight_decay, stop_loss=config.stop_loss
        )
        return descend(self.model, self.model.weights, passes, descent, rule, adam)

    def _shares(self) -> dict[str, float]:
        """Share of every matrix's directions that are flat, and how often text was read anew."""
        found = {}
        for name in self.model.modules:
            layer = layer_index(self.model.family, name)
            kind = name.rpartition(".")[2]
            found[f"flat_share_{kind}_{layer}"] = self._curvature.flat(name).share
        anew = self.config.recompute_at is not None
        return found | ({"recomputed": float(self._curvature.recomputed)} if anew else {})

    def state_dict(self) -> State:
        """Edits so far, what Adam keeps, and what was taken of the edited model along the stream.

        Together, edits are all there is; sequentially, none of them are needed.
        """
        if self.config.mode == "together":
            return self._so_far.state_dict()
        adam = {f"{name}.{k}": v for name, kept in self._adam.items() for k, v in kept.items()}
        return {
            "batches": torch.tensor(self._so_far.batches),
            **prefixed("adam.", adam),
            **prefixed("curvature.", self._curvature.state_dict()),
        }

    def load_state_dict(self, state: State) -> None:
        """Put a saved state back."""
        if self.config.mode == "together":
            if set(state) != set(self.state_dict()):
                raise ValueError(f"a state with {sorted(state)} is none of editor {self.name!r}")
            self._so_far.load_state_dict(state)
            return
        unknown = [k for k in state if not k.startswith(("batches", "adam.", "curvature."))]
        if unknown or "batches" not in state:
            raise ValueError(f"a state with {sorted(state)} is none of editor {self.name!r}")
        self._so_far.batches = int(state["batches"])
        self._adam = {}
        for key, value in unprefixed("adam.", state).items():
            name, _, kind = key.rpartition(".")
            # Adam's moments lie with the matrices; its count of steps stays on the CPU.
            where = value.device if kind == "step" else self.model.device
            self._adam.setdefault(name, {})[kind] = value.to(where, copy=True)
        self._curvature.load_state_dict(unprefixed("curvature.", state))
