"""LocFT-BF: breadth-first fine-tuning of one layer over all edits (arXiv 2509.22072).

Ordinary mini-batch training: each pass goes over all edits before any is seen again, and targets
end with EOS. Along a stream that means to train anew, from the unedited matrices, on everything the
stream has brought so far. Only models that are looked at need that: told after which batches this
is (`Editor.announce`), the editor only collects the edits of the batches between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rledit.editors.base import Editor, State
from rledit.editors.breadth_first import EditsSoFar, ended, shuffled_passes
from rledit.editors.finetuning import moved
from rledit.editors.own_prefixes import fresh_prefix_cache
from rledit.editors.sphere import SphereSettings
from rledit.editors.tuning import Descent, descend
from rledit.model import EditableModel
from rledit.tokenization import EditBatch, Sample


@dataclass(frozen=True, kw_only=True)
class LocFTConfig(SphereSettings):
    """LocFT-BF's settings; the defaults are those for Llama-3-8B.

    Attributes:
        modules: Target modules.
        passes: Passes over all edits.
        lr: Adam's learning rate.
        weight_decay: Adam's L2 penalty.
        batch_size: Edits per optimiser step.
        end_token: Put EOS behind every target.
        seed: Seed of the order of edits in each pass.
    """

    modules: tuple[str, ...]
    passes: int = 25
    lr: float = 5e-4
    weight_decay: float = 0.0
    batch_size: int = 100
    end_token: bool = True
    seed: int = 0


class LocFT(Editor):
    """Localised breadth-first fine-tuning with replay."""

    name = "locft"
    checked = {"properties": "test_locft_trains_anew_on_everything_so_far"}
    Config = LocFTConfig
    config: LocFTConfig
    work_kind = "tuned"

    def __init__(self, model: EditableModel, config: LocFTConfig) -> None:
        super().__init__(model, config)
        self._so_far = EditsSoFar()

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Add the batch to the replay; train where the model will be looked at."""
        samples: Sequence[Sample] = batch.edit.samples
        if self.config.end_token:
            samples = ended(self.model, samples, self.name)
        self._so_far.add(samples)
        replay = self._so_far.samples
        if not self._so_far.due(self.looked_at):
            return {"replayed": float(len(replay))}
        weights = self.model.weights
        before = {name: weights.read(name).clone() for name in weights.names}
        weights.restore()
        descent = Descent(lr=self.config.lr, weight_decay=self.config.weight_decay)
        config = self.config
        passes = shuffled_passes(replay, config.passes, config.batch_size, config.seed)
        with fresh_prefix_cache(self.model):
            losses = descend(self.model, weights, passes, descent)
        if self.sphere is not None:  # the update is what replay changed of the unedited matrices
            originals = {name: weights.original(name) for name in weights.names}
            self.sphere.confine(weights, originals)
        return {
            "replayed": float(len(replay)),
            "edit_loss": losses[0],
            "final_loss": losses[-1],
            "shift_norm": moved(before, {name: weights.read(name) for name in before}),
        }

    def state_dict(self) -> State:
        """All edits so far, as tokens."""
        return self._so_far.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Put the edits of a saved state back."""
        if set(state) != set(self.state_dict()):
            raise ValueError(f"a state with {sorted(state)} is none of editor {self.name!r}")
        self._so_far.load_state_dict(state)
