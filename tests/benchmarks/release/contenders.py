"""Who does the whole job: the reference implementation, our library, and the bare passes owed.

Each gives its work in parts, and a part in pieces, which are run in turn with those of the others
(see `tests.benchmarks.release.lockstep`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rledit.editors.rledit import RLEdit
from rledit.editors.ultraedit import UltraEdit, UltraEditConfig
from rledit.families import edited_modules
from rledit.model import EditableModel
from rledit.prefix_store import PrefixStore
from rledit.protocols import protocol
from rledit.records import Edit
from rledit.scoring import EditScore, Scorer
from rledit.stream import StreamScored, run_stream
from rledit.tokenization import EditBatch, Encoder
from tests.benchmarks.release.lockstep import Piece
from tests.benchmarks.release.material import Material
from tests.benchmarks.release.setting import JobSize
from tests.reference import ReferenceConfig, ReferenceRLEdit, reference_shift
from tests.reference.passes import loss_groups

PARTS = ("load", "trajectory", "before", "edit", "evaluate", "free")
"""Load; train; what is done before the first edit; edit; evaluate; edit without training."""
GROUP = 4
STORE_BYTES = 8 << 30


class Job(ABC):
    """One contender.

    Args:
        material: Model and rows.
        size: How much.
    """

    name: str

    def __init__(self, material: Material, size: JobSize) -> None:
        self.material = material
        self.size = size

    @abstractmethod
    def part(self, name: str) -> list[Piece]:
        """The pieces of a part, in order; none where it has nothing to do in it."""

    def loaded(self) -> tuple[Any, Any]:
        """A model of its own, and its tokenizer."""
        folder = self.material.model
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return model, AutoTokenizer.from_pretrained(folder)

    def cut(self, edits: Sequence[Edit]) -> list[Sequence[Edit]]:
        """Batches of edits."""
        size = self.size.batch_size
        return [edits[i : i + size] for i in range(0, len(edits), size)]


class _ReferenceUltraEdit(ReferenceRLEdit):
    """UltraEdit, dense: no network, the z-scored rows themselves."""

    def _shift(self, shape: tuple[int, int], index: int, keys: Tensor, z: Tensor) -> Tensor:
        left, right = z[:, : shape[0]], z[:, shape[0] :]
        step = self.config.initial_step
        return reference_shift(keys, -step * left.square().sum(1, keepdim=True) * right, 1.0)


class ReleaseShaped(Job):
    """As the authors' release works: see `tests.reference`."""

    name = "reference"

    def part(self, name: str) -> list[Piece]:
        """Its pieces."""
        size = self.size
        if name == "load":
            return [Piece("load", self._load)]
        if name == "trajectory":
            pieces = [Piece(name, partial(self._train, t)) for t in range(size.train_batches)]
            return [*pieces, Piece(name, self._optimise)]
        if name == "edit":
            return [Piece(name, partial(self._edit, i)) for i in range(size.stream_batches)]
        if name == "evaluate":
            return [Piece(name, partial(self._evaluate, i)) for i in range(size.stream_batches)]
        if name == "free":
            return [Piece(name, partial(self._free, i)) for i in range(size.stream_batches)]
        return []

    def scores(self) -> dict[str, float]:
        """Token accuracy in percent, by prompt kind."""
        return {kind: 100 * sum(v) / len(v) for kind, v in self._scores.items()}

    def _load(self) -> None:
        model, tokenizer = self.loaded()
        encoder = Encoder(tokenizer)
        train, stream = (
            [encoder.batch(b, GROUP, "longest_first") for b in self.cut(edits)]
            for edits in self.material.edits()
        )
        self.train: list[EditBatch] = train
        self.stream: list[EditBatch] = stream
        modules = edited_modules(model, self.size.modules)
        self.editor = ReferenceRLEdit(model, modules, self.size.reference)
        plain = ReferenceConfig(rank=1, n_blocks=0, initial_step=self.size.step)
        self._plain, self._modules = plain, modules
        self._scores: dict[str, list[float]] = {"edit": [], "equivalent": [], "unrelated": []}

    def _train(self, t: int) -> None:
        if t == 0:
            self.editor.optimiser.zero_grad(set_to_none=True)
        depth = min(self.size.depth, t + 1)
        self.editor.step([self.train[t - j] for j in range(depth)])

    def _optimise(self) -> None:
        self.editor._optimise()
        self.editor.reset()

    def _edit(self, i: int) -> None:
        self.editor.edit(self.stream[i])

    def _free(self, i: int) -> None:
        self.free.edit(self.stream[i])

    @torch.no_grad()
    def _evaluate(self, i: int) -> None:
        """A forward per 4 prompts of a batch of the stream, as its release reads them."""
        for kind, values in self._scores.items():
            for inputs, labels in loss_groups(getattr(self.stream[i], kind), self.editor.model):
                logits = self.editor.model(**inputs, use_cache=False).logits
                answer = labels != -100
                right = (logits.argmax(-1) == labels) & answer
                values += (right.sum(1) / answer.sum(1)).tolist()
        if i == len(self.stream) - 1:
            self.editor.reset()
            # On the same weights; there is no network to train.
            self.free = _ReferenceUltraEdit(self.editor.model, self._modules, self._plain)


class Library(Job):
    """Our library, cold: nothing is at hand but the model's files and the rows."""

    name = "cold"

    def __init__(self, material: Material, size: JobSize, store: Path | None = None) -> None:
        super().__init__(material, size)
        self.store = store

    def part(self, name: str) -> list[Piece]:
        """Its pieces."""
        size = self.size
        if name == "load":
            return [Piece(name, self._load)]
        if name == "trajectory":
            return [Piece(name, self._train) for _ in range(size.train_batches)]
        if name == "before":
            return [Piece(name, self._before)]
        if name == "edit":
            return [Piece(name, self._advance) for _ in range(size.stream_batches)]
        if name == "evaluate":
            return [Piece(name, self._advance)]
        return [Piece(name, partial(self._free, i)) for i in range(size.stream_batches)]

    def scores(self) -> dict[str, float]:
        """Means over the stream, by prompt kind as the reference implementation names them."""
        kinds = {
            "edit": "efficacy", "equivalent": "generalization", "unrelated": "specificity",
        }  # fmt: skip
        return {
            kind: sum(getattr(s, name) for s in self.found) / len(self.found)
            for kind, name in kinds.items()
        }

    def _load(self) -> None:
        model, tokenizer = self.loaded()
        self.model = EditableModel(model, tokenizer, self.size.modules)
        self.train, self.stream = self.material.edits()
        self._keep_prefixes()
        self.editor = RLEdit(self.model, self.size.ours)
        self._training: Any = None
        self.found: list[EditScore] = []

    def _keep_prefixes(self) -> None:
        if self.store is not None:
            cache = self.model.prefix_cache
            cache.keep_in(PrefixStore(self.store, cache.fingerprint(), STORE_BYTES))

    def _train(self) -> None:
        if self._training is None:
            batches = [self.editor.encode(b) for b in self.cut(self.train)]
            self._training = self.editor.train_batches(batches)
        next(self._training)

    def _before(self) -> None:
        scorer = self._scorer()
        n = self.size.stream_batches
        self._events = run_stream(self.editor, self.stream, self.size.batch_size, (n,), scorer)

    def _scorer(self) -> Scorer:
        return Scorer(self.model, self.stream, [protocol("token_accuracy")])

    def _advance(self) -> None:
        event = next(self._events)
        if isinstance(event, StreamScored):
            self.found = event.scores

    def _free(self, i: int) -> None:
        if i == 0:
            self.model.weights.restore()
            config = UltraEditConfig(modules=self.size.modules, **self.size.free_settings)
            self.free = UltraEdit(self.model, config)
        self.model.prefix_cache.clear()
        self.free.edit(self.free.encode(self.cut(self.stream)[i]))


class WarmLibrary(Library):
    """Our library with the prefixes in a store, and the unedited model's answers known."""

    name = "warm"

    def prepare(self) -> None:
        """Record what is to be at hand; untimed."""
        model, tokenizer = self.loaded()
        self.model = EditableModel(model, tokenizer, self.size.modules)
        self.train, self.stream = self.material.edits()
        self._keep_prefixes()
        self._unedited = Library._scorer(self).unedited
        store = self.model.prefix_cache.store
        assert store is not None
        for batch in self.cut(self.train):
            found = self.model.encoder.batch(batch, GROUP)
            samples = [
                s
                for phase in (found.edit, found.equivalent, found.unrelated)
                for s in phase.samples
            ]
            for _ in self.model.prefix_cache.store_ahead(samples):
                pass
        store.flush()
        del self.model

    def _scorer(self) -> Scorer:
        protocols = [protocol("token_accuracy")]
        return Scorer(self.model, self.stream, protocols, unedited=lambda: self._unedited)
