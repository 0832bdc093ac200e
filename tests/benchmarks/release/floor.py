"""The passes that the whole job owes, once for each distinct prompt and state of the weights.

Plain modules of the model in micro-batches as large as ours, from the first edited layer up; the
output embedding sees answer positions only. There is nothing else: no keys, no shift, no network,
no merge, no tokens, no scores. Every layer from the first edited one up runs whole (ours replays
that layer's attention and runs the last MLP on answer positions only).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rledit.families import edited_modules, family_of, layer_index
from rledit.micro_batches import MicroBatch, make_micro_batches
from rledit.model import SINGLE_PASS_TOKENS, Execution
from rledit.tokenization import EditBatch, Encoder, Sample
from tests.benchmarks.models import part as layers_of
from tests.benchmarks.release.contenders import GROUP, Job
from tests.benchmarks.release.lockstep import Piece


class PassesOwed(Job):
    """The floor."""

    name = "floor"

    def part(self, name: str) -> list[Piece]:
        """Its pieces: prefixes apart from what begins at the first edited layer."""
        batches = range(self.size.stream_batches)
        parts: dict[str, Callable[[], list[Piece]]] = {
            "load": self._nothing,
            "trajectory": self._trajectory,
            "before": self._before,
            "edit": lambda: [Piece("edit", partial(self._edit, i)) for i in batches],
            "evaluate": lambda: [Piece("evaluate", self._evaluate)],
            "free": self._free,
        }
        return parts[name]()

    def _nothing(self) -> list[Piece]:
        """Load, untimed."""
        model, tokenizer = self.loaded()
        model.requires_grad_(False)
        family = family_of(model)
        names = edited_modules(model, self.size.modules)
        first = min(layer_index(family, name) for name in names)
        count = len(model.get_submodule(family.layers))
        self._below = layers_of(model, range(first), final_norm=False)
        self._above = layers_of(model, range(first, count), final_norm=True)
        self._head = model.get_output_embeddings()
        self._execution = Execution()
        self._prefixes: dict[bytes, Tensor] = {}
        encoder = Encoder(tokenizer)
        self.train, self.stream = (
            [encoder.batch(b, GROUP, "longest_first") for b in self.cut(edits)]
            for edits in self.material.edits()
        )
        return []

    def _trajectory(self) -> list[Piece]:
        pieces = []
        for t in range(self.size.train_batches):
            pieces += [
                Piece("trajectory, prefixes", partial(self._record, [self.train[t]])),
                Piece("trajectory", partial(self._step, t)),
            ]
        return pieces

    def _step(self, t: int) -> None:
        """References of the newest batch, its edit prompts, and the reward of the window."""
        newest = self.train[t]
        self._forward(newest.unrelated.samples)
        self._backward(newest.edit.samples, SINGLE_PASS_TOKENS)
        window = self.train[max(0, t + 1 - self.size.depth) : t + 1]
        self._backward([s for b in window for p in (b.equivalent, b.unrelated) for s in p.samples])

    def _before(self) -> list[Piece]:
        edited = [s for b in self.stream for p in (b.edit, b.equivalent) for s in p.samples]
        unrelated = [s for b in self.stream for s in b.unrelated.samples]
        return [
            Piece("before, prefixes", lambda: self._record(self.stream)),
            Piece("before", lambda: self._forward(unrelated)),
            # Rows of the lake, of the time before the first edit.
            Piece("before, rows", lambda: self._forward(edited)),
        ]

    def _edit(self, i: int) -> None:
        self._backward(self.stream[i].edit.samples, SINGLE_PASS_TOKENS)

    def _evaluate(self) -> None:
        phases = [p for b in self.stream for p in (b.edit, b.equivalent, b.unrelated)]
        self._forward([s for phase in phases for s in phase.samples])

    def _free(self) -> list[Piece]:
        pieces = []
        for i in range(self.size.stream_batches):
            pieces += [
                Piece("free, prefixes", partial(self._record_samples, self.stream[i])),
                Piece("free", partial(self._edit, i)),
            ]
        return pieces

    def _record_samples(self, batch: EditBatch) -> None:
        for sample in batch.edit.samples:
            self._prefixes.pop(sample.key, None)
        self._below_first(batch.edit.samples)

    def _record(self, batches: Iterable[EditBatch]) -> None:
        phases = [p for b in batches for p in (b.edit, b.equivalent, b.unrelated)]
        self._below_first([s for phase in phases for s in phase.samples])

    @torch.no_grad()
    def _below_first(self, samples: Sequence[Sample]) -> None:
        missing = [s for s in _distinct(samples) if s.key not in self._prefixes]
        for micro_batch in self._micro_batches(missing, SINGLE_PASS_TOKENS):
            ids = micro_batch.input_ids()
            hidden = self._below(input_ids=ids, use_cache=False).last_hidden_state
            for sample, row in zip(micro_batch.samples, hidden, strict=True):
                self._prefixes[sample.key] = row[: len(sample)].clone()

    @torch.no_grad()
    def _forward(self, samples: Sequence[Sample]) -> None:
        for micro_batch in self._micro_batches(_distinct(samples), SINGLE_PASS_TOKENS):
            self._logits(micro_batch, self._entrance(micro_batch)).argmax(-1)

    def _backward(self, samples: Sequence[Sample], least: int = 0) -> None:
        for micro_batch in self._micro_batches(samples, least):
            start = self._entrance(micro_batch).requires_grad_()
            with torch.enable_grad():
                loss = F.cross_entropy(self._logits(micro_batch, start), micro_batch.labels)
            torch.autograd.grad(loss, start)

    def _logits(self, micro_batch: MicroBatch, hidden: Tensor) -> Tensor:
        top = self._above(inputs_embeds=hidden, use_cache=False).last_hidden_state
        logits: Tensor = self._head(top.flatten(0, 1)[micro_batch.rows])
        return logits

    def _entrance(self, micro_batch: MicroBatch) -> Tensor:
        return pad_sequence([self._prefixes[s.key] for s in micro_batch.samples], batch_first=True)

    def _micro_batches(self, samples: Sequence[Sample], least: int = 0) -> list[MicroBatch]:
        tokens = self._execution.tokens(torch.device("cpu"), least)
        return make_micro_batches(samples, tokens)


def _distinct(samples: Iterable[Sample]) -> list[Sample]:
    return list({(s.key, tuple(s.labels.tolist())): s for s in samples}.values())
