"""LocFT-BF: breadth-first fine-tuning of one layer over all edits (arXiv 2509.22072).

Ordinary mini-batch training: each pass goes over all edits before any is seen again, and targets
end with EOS. Along a stream that means to train anew, from the unedited matrices, on everything the
stream has brought so far. Only models that are looked at need that: told after which batches this
is (`Editor.announce`), the editor only collects the edits of the batches between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rledit.editors.base import Editor, State
from rledit.editors.finetuning import moved
from rledit.editors.own_prefixes import fresh_prefix_cache
from rledit.editors.tuning import Descent, TargetLikelihood, descend
from rledit.model import EditableModel
from rledit.tokenization import EditBatch, Sample


@dataclass(frozen=True, kw_only=True)
class LocFTConfig:
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

    def __init__(self, model: EditableModel, config: LocFTConfig) -> None:
        super().__init__(model, config)
        self._replay: list[Sample] = []
        self._batches = 0

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Add the batch to the replay; train where the model will be looked at."""
        samples = batch.edit.samples
        self._replay += [self._ended(s) for s in samples] if self.config.end_token else samples
        self._batches += 1
        if self.looked_at is not None and self._batches not in self.looked_at:
            return {"replayed": float(len(self._replay))}
        weights = self.model.weights
        before = {name: weights.read(name).clone() for name in weights.names}
        weights.restore()
        descent = Descent(lr=self.config.lr, weight_decay=self.config.weight_decay)
        with fresh_prefix_cache(self.model):
            losses = descend(self.model, weights, self._passes(), descent)
        return {
            "replayed": float(len(self._replay)),
            "edit_loss": losses[0],
            "final_loss": losses[-1],
            "shift_norm": moved(before, {name: weights.read(name) for name in before}),
        }

    def _passes(self) -> Iterator[list[TargetLikelihood]]:
        order = torch.Generator().manual_seed(self.config.seed)
        size = self.config.batch_size
        for _ in range(self.config.passes):
            places = torch.randperm(len(self._replay), generator=order).tolist()
            shuffled = [self._replay[i] for i in places]
            yield [
                TargetLikelihood(shuffled[first : first + size])
                for first in range(0, len(shuffled), size)
            ]

    def _ended(self, sample: Sample) -> Sample:
        """The sample with EOS as one more answer token."""
        found = getattr(self.model.model.config, "eos_token_id", None)
        end = found[0] if isinstance(found, list) else found
        if end is None:
            raise ValueError(
                "locft ends targets with EOS, but the model's configuration names no eos_token_id; "
                "set it, or set end_token to false"
            )
        ids = torch.cat([sample.input_ids, sample.labels[-1:]])
        return Sample(ids, torch.cat([sample.labels, torch.tensor([end])]))

    def state_dict(self) -> State:
        """All edits so far, as tokens."""
        empty = [torch.zeros(0, dtype=torch.long)]
        return {
            "batches": torch.tensor(self._batches),
            "lengths": torch.tensor([len(s) for s in self._replay], dtype=torch.long),
            "input_ids": torch.cat([s.input_ids for s in self._replay] or empty),
            "labels": torch.cat([s.labels for s in self._replay] or empty),
        }

    def load_state_dict(self, state: State) -> None:
        """Put the edits of a saved state back."""
        if set(state) != set(self.state_dict()):
            raise ValueError(f"a state with {sorted(state)} is none of editor {self.name!r}")
        lengths = state["lengths"].tolist()
        ids, labels = state["input_ids"].split(lengths), state["labels"].split(lengths)
        self._replay = [Sample(i.clone(), j.clone()) for i, j in zip(ids, labels, strict=True)]
        self._batches = int(state["batches"])
