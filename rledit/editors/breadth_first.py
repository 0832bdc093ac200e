"""Keeps all edits of a stream, and draws shuffled passes over them, for LocFT-BF and CrispEdit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rledit.editors.base import State
from rledit.editors.tuning import TargetLikelihood
from rledit.lazy_torch import torch
from rledit.model import EditableModel
from rledit.tokenization import Sample


class EditsSoFar:
    """The edits that a stream has brought, for an editor that trains anew on all of them.

    Attributes:
        samples: The edits, as tokens.
        batches: Batches they came in.
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.batches = 0

    def add(self, samples: Sequence[Sample]) -> None:
        """Take one more batch."""
        self.samples += samples
        self.batches += 1

    def due(self, looked_at: Collection[int] | None) -> bool:
        """Whether the model is looked at now; always where nobody has said when it is."""
        return looked_at is None or self.batches in looked_at

    def state_dict(self) -> State:
        """All edits so far, as tokens."""
        empty = [torch.zeros(0, dtype=torch.long)]
        return {
            "batches": torch.tensor(self.batches),
            "lengths": torch.tensor([len(s) for s in self.samples], dtype=torch.long),
            "input_ids": torch.cat([s.input_ids for s in self.samples] or empty),
            "labels": torch.cat([s.labels for s in self.samples] or empty),
        }

    def load_state_dict(self, state: State) -> None:
        """Put the edits of a saved state back."""
        lengths = state["lengths"].tolist()
        ids, labels = state["input_ids"].split(lengths), state["labels"].split(lengths)
        self.samples = [Sample(i.clone(), j.clone()) for i, j in zip(ids, labels, strict=True)]
        self.batches = int(state["batches"])


def shuffled_passes(
    samples: Sequence[Sample], passes: int, batch_size: int, seed: int
) -> Iterator[list[TargetLikelihood]]:
    """The mini-batches of each pass over some edits, in an order of its own."""
    order = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        places = torch.randperm(len(samples), generator=order).tolist()
        shuffled = [samples[i] for i in places]
        yield [
            TargetLikelihood(shuffled[first : first + batch_size])
            for first in range(0, len(shuffled), batch_size)
        ]


def ended(model: EditableModel, samples: Sequence[Sample], editor: str) -> list[Sample]:
    """Edits with EOS as one more answer token.

    Raises:
        ValueError: The model's configuration names none; says so of the editor.
    """
    found = getattr(model.model.config, "eos_token_id", None)
    end = found[0] if isinstance(found, list) else found
    if end is None:
        raise ValueError(
            f"{editor} ends targets with EOS, but the model's configuration names no eos_token_id; "
            "set it, or set end_token to false"
        )
    return [_with(sample, end) for sample in samples]


def _with(sample: Sample, end: int) -> Sample:
    ids = torch.cat([sample.input_ids, sample.labels[-1:]])
    return Sample(ids, torch.cat([sample.labels, torch.tensor([end])]))
