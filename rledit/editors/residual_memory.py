"""MEMOIR's memory: one residual matrix, of which each edit may use a few inputs (arXiv 2506.07899).

The linear gives W x + W_m (μ ⊙ x), with μ a 0/1 mask of k inputs that belongs to a prompt: the k at
which the mean of the prompt's inputs lies farthest from that of unrelated prompts, sent through one
fixed permutation. A prompt takes the mask of the edit that its own overlaps with most, or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rledit.lazy_torch import F, Tensor, torch
from rledit.model import EditableModel
from rledit.overlay import NONE, Overlay, Places


class ResidualMemory(Overlay):
    """W_m and the masks of the edits.

    Args:
        model: The model.
        module: The linear.
        k: Inputs of a mask.
        overlap: τ; share of its own mask that a prompt has to have in common with an edit's.
        skip_first: Leave the first token out of a prompt's mean: its outlier outweighs the others,
            the more the shorter the prompt.
        seed: Of the permutation.

    Attributes:
        weight: W_m (d_out, d_in), in the compute precision.
        permutation: (d_in,) int64.
        background: b (d_in,) float64, the mean that masks are taken from; zero before it is known.
        masks: (edits, d_in) bool, on the host.
        edited: The target's token ids of each edit.
    """

    def __init__(
        self,
        model: EditableModel,
        module: str,
        k: int,
        overlap: float,
        skip_first: bool,
        seed: int,
    ) -> None:
        self.k, self.overlap, self.skip_first, self.seed = k, overlap, skip_first, seed
        self._trained: tuple[Tensor, Tensor] | None = None
        self._numbers: tuple[Tensor, Tensor] | None = None
        self._begin_with(model, module)
        super().__init__(model, module)

    def _begin_with(self, model: EditableModel, module: str) -> None:
        d_in, d_out = model.shape(module)
        self.weight = torch.zeros(d_out, d_in, dtype=model.compute_dtype, device=model.device)
        generator = torch.Generator().manual_seed(self.seed)
        self.permutation = torch.randperm(d_in, generator=generator)
        self.background = torch.zeros(d_in, dtype=torch.float64)
        self.masks = torch.zeros(0, d_in, dtype=torch.bool)
        self.edited: list[tuple[int, ...]] = []

    @property
    def entries(self) -> int:
        """Edits."""
        return len(self.masks)

    @property
    def n_bytes(self) -> int:
        """The matrix, the masks with the table that decisions make of them, and the rest."""
        tensors = (self.weight, self.permutation, self.background, self.masks)
        numbers, ids = 4 * self.masks.numel(), 8 * sum(map(len, self.edited))
        return sum(tensor.nbytes for tensor in tensors) + numbers + ids

    def summarise(self, inputs: Tensor) -> Tensor:
        """(d_in,) float64, the mean of the prompt's inputs."""
        first = 1 if self.skip_first and len(inputs) > 1 else 0
        return inputs[first:].double().mean(0)

    def mask_of(self, summaries: Sequence[Tensor]) -> Tensor:
        """(b, d_in) bool, k inputs of each prompt."""
        features = (torch.stack(list(summaries)) - self.background).abs()
        chosen = self.permutation[features.topk(self.k, dim=1).indices]
        masks = torch.zeros(features.shape, dtype=torch.bool)
        return masks.scatter_(1, chosen, torch.ones_like(chosen, dtype=torch.bool))

    def decide(self, summaries: Sequence[Tensor]) -> Tensor:
        """(b,) int64: the edit whose mask overlaps most, the newest of equal ones."""
        if not summaries or not self.entries:
            return torch.full((len(summaries),), NONE)
        # Whole numbers below 2^24, which float32 adds up exactly, on whatever device.
        table = self._table()
        common = (self.mask_of(summaries).to(table) @ table.T).cpu()
        best = common.amax(1)
        place = self.entries - 1 - (common == best[:, None]).flip(1).int().argmax(1)
        return torch.where(best / self.k >= self.overlap, place, NONE)

    def _table(self) -> Tensor:
        """(edits, d_in) float32, the masks as numbers on the model's device; made once for the
        decisions between two edits."""
        if self._numbers is None or self._numbers[0] is not self.masks:
            self._numbers = None  # before the new one is made: these are large
            self._numbers = (self.masks, self.masks.to(self.model.device, torch.float32))
        return self._numbers[1]

    def output(self, inputs: Tensor, output: Tensor, places: Places) -> Tensor:
        """The linear's output plus W_m (μ ⊙ x), at every position of a prompt with a mask."""
        rows = (places.entry >= 0).nonzero().flatten()
        if self._trained is not None:
            columns, weight = self._trained
            own = inputs[rows][:, columns]
        else:
            masks = self.masks[places.entry[rows].cpu()].to(inputs.device)
            weight, own = self.weight, torch.where(masks, inputs[rows], 0.0)
        moved = F.linear(own.to(weight.dtype), weight)
        return output.index_add(0, rows, moved.to(output.dtype))

    @contextmanager
    def training(self, columns: Tensor, weight: Tensor, n_samples: int) -> Iterator[None]:
        """Let passes over so many samples inside the context take these columns of W_m, at every
        position.

        Args:
            columns: (k,) int64.
            weight: (d_out, k).
            n_samples: Samples.
        """
        self._trained = (columns, weight)
        try:
            with self.forced(torch.zeros(n_samples, dtype=torch.long)):
                yield
        finally:
            self._trained = None

    def right(self, edit: int, entry: int) -> bool:
        """Whether a mask is the edit's, or that of another edit of the same target."""
        return entry != NONE and self.edited[entry] == self.edited[edit]

    def empty(self) -> None:
        """Forget all edits."""
        self._begin_with(self.model, self.module)

    def tensors(self) -> dict[str, Tensor]:
        """The memory as flat tensors; masks as the places of their inputs."""
        found = {
            "weight": self.weight,
            "permutation": self.permutation,
            "background": self.background,
            "masks": self.masks.nonzero()[:, 1].view(-1, self.k).int(),
            "edited": torch.tensor([i for ids in self.edited for i in ids], dtype=torch.long),
            "edited_lengths": torch.tensor([len(i) for i in self.edited], dtype=torch.long),
        }
        return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put a saved memory back."""
        self.weight = tensors["weight"].to(self.weight)
        self.permutation, self.background = tensors["permutation"], tensors["background"]
        places = tensors["masks"].long()
        masks = torch.zeros(len(places), len(self.permutation), dtype=torch.bool)
        self.masks = masks.scatter_(1, places, torch.ones_like(places, dtype=torch.bool))
        parts = tensors["edited"].split(tensors["edited_lengths"].tolist())
        self.edited = [tuple(ids.tolist()) for ids in parts]
