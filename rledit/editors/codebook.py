"""GRACE's memory: a codebook of keys, radii and values at one linear layer (arXiv 2211.11031).

A prompt's key h is the linear's input at the prompt's last token. The nearest entry answers it
where h lies within the entry's radius; the linear's output there is then the entry's value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.overlay import NONE, Overlay, Places
from rledit.tokenization import Sample

Replaces = Literal["last", "prompt", "all"]
"""Positions whose output is the value: the prompt's last token, all up to it, or all."""
COMPARED_BYTES = 64 << 20
"""Memory for float64 copies of keys while a decision compares them, a part of them at a time."""


class Codebook(Overlay):
    """Keys h (n, d_in), radii ε (n,) and values v (n, d_out), with the target of each entry.

    Keys are kept as the model gives them, radii in float64: distances are differences in float64,
    as neither a model's own type nor |a|² + |b|² − 2ab in float32 tells keys apart that are near.

    Args:
        model: The model.
        module: The linear.
        replaces: Positions whose output is the value.

    Attributes:
        keys, radii, values: See above; on the model's device.
        targets: The target's token ids of each entry.
        means: (n,) float64, what the release compares targets by, see `mean_label`.
        owners: The entry of each edit in the order of the stream; `NONE` where the model knew it.
        edited: The target's token ids of each edit.
    """

    def __init__(self, model: EditableModel, module: str, replaces: Replaces) -> None:
        self.replaces = replaces
        self.empty_of(model.shape(module), model)
        super().__init__(model, module)

    def empty_of(self, shape: tuple[int, int], model: EditableModel) -> None:
        """Begin with no entry."""
        d_in, d_out = shape
        kind, device = model.compute_dtype, model.device
        self.keys = torch.zeros(0, d_in, dtype=kind, device=device)
        self.values = torch.zeros(0, d_out, dtype=kind, device=device)
        self.radii = torch.zeros(0, dtype=torch.float64, device=device)
        self.means = torch.zeros(0, dtype=torch.float64)
        self._trained: Tensor | None = None
        self.targets: list[tuple[int, ...]] = []
        self.owners: list[int] = []
        self.edited: list[tuple[int, ...]] = []

    @property
    def entries(self) -> int:
        """Entries of the codebook."""
        return len(self.keys)

    @property
    def n_bytes(self) -> int:
        """Keys, values, radii, labels, and the ids of entries and targets."""
        tensors = (self.keys, self.values, self.radii, self.means)
        ids = len(self.owners) + sum(map(len, self.targets)) + sum(map(len, self.edited))
        return sum(tensor.nbytes for tensor in tensors) + 8 * ids

    def summarise(self, inputs: Tensor) -> Tensor:
        """(d_in,), the key."""
        return inputs[-1].to(self.keys.dtype)

    def nearest(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Entry nearest to each key (b, d_in), and its distance; of equally near ones the newest.

        Returns:
            (b,) int64 and (b,) float64, on the model's device.
        """
        asked = keys.to(self.keys.device).double()
        parts = self.keys.split(max(1, COMPARED_BYTES // (8 * self.keys.shape[1])))
        exact = "donot_use_mm_for_euclid_dist"
        found = [torch.cdist(asked, part.double(), compute_mode=exact) for part in parts]
        apart = torch.cat(found, 1).flip(1)  # the newest first
        distance = apart.amin(1)
        # The first of equal minima, whichever a kernel returns.
        place = (apart == distance[:, None]).int().argmax(1)
        return self.entries - 1 - place, distance

    def decide(self, summaries: Sequence[Tensor]) -> Tensor:
        """(b,) int64: the nearest entry where the key lies within its radius."""
        if not summaries or not self.entries:
            return torch.full((len(summaries),), NONE)
        entry, distance = self.nearest(torch.stack(list(summaries)))
        return torch.where(distance <= self.radii[entry], entry, NONE).cpu()

    def output(self, inputs: Tensor, output: Tensor, places: Places) -> Tensor:
        """The value in place of the output, where an entry answers and the position is its."""
        hit = places.entry >= 0
        if self.replaces == "last":
            hit &= places.position == places.end
        elif self.replaces == "prompt":
            hit &= places.position <= places.end
        table = self.values if self._trained is None else self._trained
        values = table[places.entry.clamp_min(0)].to(output.dtype)
        return torch.where(hit[:, None], values, output)

    def right(self, edit: int, entry: int) -> bool:
        """Whether an entry is the edit's, or another one of the same target.

        An edit that the model knew is right without any.
        """
        if entry == NONE:
            return self.owners[edit] == NONE
        return self.targets[entry] == self.edited[edit]

    @contextmanager
    def training(self, values: Tensor) -> Iterator[None]:
        """Let passes inside the context take these values, sample i the i-th: they may be trained.

        Args:
            values: (samples, d_out).
        """
        self._trained = values
        try:
            with self.forced(torch.arange(len(values))):
                yield
        finally:
            self._trained = None

    def add(self, key: Tensor, value: Tensor, radius: float, sample: Sample) -> int:
        """A new entry; returns its place."""
        self.keys = torch.cat([self.keys, key.to(self.keys)[None]])
        self.values = torch.cat([self.values, value.to(self.values)[None]])
        self.radii = torch.cat([self.radii, self.radii.new_tensor([radius])])
        self.means = torch.cat([self.means, self.means.new_tensor([mean_label(sample)])])
        self.targets.append(target_of(sample))
        return self.entries - 1

    def empty(self) -> None:
        """Forget all entries and edits."""
        self.empty_of(self.model.shape(self.module), self.model)

    def tensors(self) -> dict[str, Tensor]:
        """The codebook as flat tensors; target ids one after another."""
        found = {"keys": self.keys, "values": self.values, "radii": self.radii}
        found |= {"means": self.means, "owners": torch.tensor(self.owners, dtype=torch.long)}
        for name, ragged in (("targets", self.targets), ("edited", self.edited)):
            found[name] = torch.tensor([i for ids in ragged for i in ids], dtype=torch.long)
            found[f"{name}_lengths"] = torch.tensor([len(i) for i in ragged], dtype=torch.long)
        return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put a saved codebook back."""
        self.keys = tensors["keys"].to(self.keys)
        self.values = tensors["values"].to(self.values)
        self.radii = tensors["radii"].to(self.radii)
        self.means = tensors["means"]
        self.owners = tensors["owners"].tolist()
        self.targets, self.edited = (
            [tuple(i.tolist()) for i in tensors[name].split(tensors[f"{name}_lengths"].tolist())]
            for name in ("targets", "edited")
        )


def target_of(sample: Sample) -> tuple[int, ...]:
    """Token ids of a sample's answer."""
    return tuple(sample.answer_ids.tolist())


def mean_label(sample: Sample) -> float:
    """Mean of the labels that the release has for a prompt with its target.

    They are −100 for every token of the prompt, so equal targets behind prompts of unequal length
    have unequal means, and unequal targets may have equal ones.
    """
    ids = target_of(sample)
    return (sum(ids) - 100.0 * len(sample.prompt)) / (len(sample.prompt) + len(ids))
