"""WISE's memory: side matrices W′ beside one linear's W; a prompt is answered by one or none.

A side memory is kept as its difference D = W′ − W in the compute precision: two bf16 outputs of
almost equal matrices differ by round-off. A prompt is routed by how far a side memory moves it,
Δ = mean over its tokens of ‖D x‖₂.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from rledit.lazy_torch import F, Tensor, torch
from rledit.model import EditableModel
from rledit.overlay import NONE, Overlay, Places
from rledit.step_size import SettingError

Statistic = Literal["shift", "activation"]
Rivals = Literal["passing", "current"]
LONG = 100
"""Tokens from which on the release takes the largest token's activation for the mean."""


@dataclass(frozen=True, eq=False)
class PromptRows:
    """The inputs of some prompts, one prompt after another, on the device of the memories.

    Attributes:
        inputs: (tokens, d_in).
        lengths: Tokens of each prompt.
        plain: (tokens, d_out), W x, where Δ is of activations.
    """

    inputs: Tensor
    lengths: list[int]
    plain: Tensor | None


class SideMemories(Overlay):
    """The side memory of the shard under way, and those of finished shards.

    Args:
        model: The model.
        module: The linear.
        ratio: r; a memory answers where Δ is larger than r times its threshold.
        statistic: Δ: of the `shift` D x, or of the `activation` σ(W′x) − σ(Wx).
        rivals: Whom a finished memory has to beat: those over their thresholds (`passing`), or the
            `current` one as well, wherever that stands.

    Raises:
        SettingError: Δ is of activations, and the model's configuration names no function.

    Attributes:
        current: (d_out, d_in) difference of the shard under way.
        threshold: The smallest Δ of its edits; infinite before its first.
        stored: (memories, d_out, d_in) differences of finished shards.
        thresholds: (memories,) float64.
        shard: Number of the shard under way.
        shard_of: The shard of each edit in the order of the stream.
        place_of: (finished shards,) the stored memory that holds each of them.
    """

    def __init__(
        self,
        model: EditableModel,
        module: str,
        ratio: float,
        statistic: Statistic,
        rivals: Rivals,
    ) -> None:
        self.ratio, self.statistic, self.rivals = ratio, statistic, rivals
        self._activation = activation_of(model) if statistic == "activation" else None
        self._trained: Tensor | None = None
        self._begin_with(model, module)
        super().__init__(model, module)

    def _begin_with(self, model: EditableModel, module: str) -> None:
        d_in, d_out = model.shape(module)
        kind = {"dtype": model.compute_dtype, "device": model.device}
        self.current = torch.zeros(d_out, d_in, **kind)  # type: ignore[call-overload]
        self.stored = torch.zeros(0, d_out, d_in, **kind)  # type: ignore[call-overload]
        self.thresholds = torch.zeros(0, dtype=torch.float64)
        self.threshold = float("inf")
        self.shard = 0
        self.shard_of: list[int] = []
        self.place_of: list[int] = []

    @property
    def under_way(self) -> bool:
        """Whether the shard under way has edits."""
        return bool(self.shard_of) and self.shard_of[-1] == self.shard

    @property
    def entries(self) -> int:
        """Side memories that may answer."""
        return len(self.stored) + self.under_way

    @property
    def n_bytes(self) -> int:
        """The differences, that of the shard under way among them from the start on."""
        tensors = (self.current, self.stored, self.thresholds)
        ids = 8 * (len(self.shard_of) + len(self.place_of))
        return sum(tensor.nbytes for tensor in tensors) + ids

    def summarise(self, inputs: Tensor) -> Tensor:
        """(tokens, d_in), the inputs themselves: the memory they are held against changes."""
        return inputs.to(self.current.dtype)

    def prompt_rows(self, summaries: Sequence[Tensor]) -> PromptRows:
        """What is known of prompts, made ready to be held against one difference after another."""
        rows = torch.cat(list(summaries)).to(self.current)
        plain = None
        if self.statistic == "activation":
            plain = F.linear(rows, self._weight().to(self.current))
        return PromptRows(rows, [len(s) for s in summaries], plain)

    def moved(self, prompts: PromptRows, difference: Tensor) -> Tensor:
        """(b,) Δ of each prompt under a difference, which may carry a graph."""
        moved = F.linear(prompts.inputs, difference)
        if prompts.plain is not None:
            assert self._activation is not None
            moved = self._activation(prompts.plain + moved) - self._activation(prompts.plain)
        parts = torch.linalg.vector_norm(moved, dim=-1).split(prompts.lengths)
        long = self.statistic == "activation"
        return torch.stack([p.amax() if long and len(p) > LONG else p.mean() for p in parts])

    def _weight(self) -> Tensor:
        return self.model.weights.original(self.module)

    @torch.no_grad()
    def decide(self, summaries: Sequence[Tensor]) -> Tensor:
        """(b,) int64: the memory that moves the prompt most of those over their thresholds."""
        if not summaries or not self.entries:
            return torch.full((len(summaries),), NONE)
        known = [*self.stored, *([self.current] if self.under_way else [])]
        limits = [*self.thresholds.tolist(), *([self.threshold] if self.under_way else [])]
        prompts = self.prompt_rows(summaries)
        deltas = torch.stack([self.moved(prompts, d).double().cpu() for d in known])
        due = self.ratio * torch.tensor(limits, dtype=torch.float64)[:, None]
        passing = deltas > due
        if self.rivals == "current" and self.under_way:
            passing[:-1] &= deltas[:-1] > deltas[-1]
        ranked = torch.where(passing, deltas, -1.0)
        best, place = ranked.max(0)
        return torch.where(best >= 0, place, NONE)

    def output(self, inputs: Tensor, output: Tensor, places: Places) -> Tensor:
        """The linear's output plus D x, at every position of a prompt that a memory answers."""
        if self._trained is not None:
            return self._added(inputs, output, places.entry >= 0, self._trained)
        for entry in places.entry.unique().tolist():
            if entry != NONE:
                stored = entry < len(self.stored)
                difference = self.stored[entry] if stored else self.current
                output = self._added(inputs, output, places.entry == entry, difference)
        return output

    def _added(self, inputs: Tensor, output: Tensor, hit: Tensor, difference: Tensor) -> Tensor:
        rows = hit.nonzero().flatten()
        moved = F.linear(inputs[rows].to(difference.dtype), difference)
        return output.index_add(0, rows, moved.to(output.dtype))

    @contextmanager
    def training(self, difference: Tensor, n_samples: int) -> Iterator[None]:
        """Let passes over so many samples inside the context take this difference."""
        self._trained = difference
        try:
            with self.forced(torch.zeros(n_samples, dtype=torch.long)):
                yield
        finally:
            self._trained = None

    def right(self, edit: int, entry: int) -> bool:
        """Whether a memory is the one of the edit's shard, or the one that shard is merged into."""
        own = self.shard_of[edit]
        return entry == (len(self.stored) if own == self.shard else self.place_of[own])

    def store(self) -> None:
        """Put the shard under way to the finished ones; the next one starts from W again."""
        self.stored = torch.cat([self.stored, self.current[None]])
        self.thresholds = torch.cat([self.thresholds, self.thresholds.new_tensor([self.threshold])])
        self.place_of.append(len(self.stored) - 1)
        self.current = torch.zeros_like(self.current)
        self.threshold = float("inf")
        self.shard += 1

    def merge(self, count: int, density: float) -> None:
        """Make one memory of the last `count` stored ones, by TIES, with the smallest threshold."""
        if count < 2:
            return
        first = len(self.stored) - count
        merged = ties(self.stored[first:], density)
        self.stored = torch.cat([self.stored[:first], merged[None]])
        smallest = self.thresholds[first:].min()[None]
        self.thresholds = torch.cat([self.thresholds[:first], smallest])
        self.place_of = [min(place, first) for place in self.place_of]

    def empty(self) -> None:
        """Forget all memories and edits."""
        self._begin_with(self.model, self.module)

    def tensors(self) -> dict[str, Tensor]:
        """The memories as flat tensors. The threshold of a shard without edits is −1."""
        limit = self.threshold if self.under_way else -1.0
        found = {
            "current": self.current,
            "stored": self.stored,
            "thresholds": self.thresholds,
            "threshold": torch.tensor(limit, dtype=torch.float64),
            "shard": torch.tensor(self.shard),
            "shard_of": torch.tensor(self.shard_of, dtype=torch.long),
            "place_of": torch.tensor(self.place_of, dtype=torch.long),
        }
        return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put saved memories back."""
        self.current = tensors["current"].to(self.current)
        self.stored = tensors["stored"].to(self.stored)
        self.thresholds = tensors["thresholds"]
        self.shard = int(tensors["shard"])
        self.shard_of = tensors["shard_of"].tolist()
        self.place_of = tensors["place_of"].tolist()
        limit = float(tensors["threshold"])
        self.threshold = limit if self.under_way else float("inf")


def activation_of(model: EditableModel) -> Callable[[Tensor], Tensor]:
    """The activation function of a model's MLPs, by the name that its configuration has for it.

    Raises:
        SettingError: The configuration names none.
    """
    from transformers.activations import ACT2FN

    config: Any = model.model.config
    for setting in ("hidden_act", "hidden_activation", "activation_function", "activation"):
        if name := getattr(config, setting, None):
            found: Callable[[Tensor], Tensor] = ACT2FN[name]
            return found
    raise SettingError(
        "statistic",
        f"activation holds a prompt against the model's own activation function, and a "
        f"configuration of {config.model_type} names none; set statistic to shift",
    )


def ties(deltas: Tensor, density: float) -> Tensor:
    """One difference of several (n, d_out, d_in), whatever their order (arXiv 2306.01708).

    Of each the largest entries stay, a share `density` of all; an entry's sign is that of their
    sum, and its value the mean of those that have this sign.
    """
    flat = deltas.flatten(1)
    kept = max(1, round(density * flat.shape[1]))
    if kept < flat.shape[1]:
        least = flat.abs().kthvalue(flat.shape[1] - kept + 1, dim=1).values
        flat = torch.where(flat.abs() >= least[:, None], flat, 0.0)
    # Added up in an order of their own, so that no bit depends on the order of the memories.
    flat = flat.sort(0).values
    sign = flat.sum(0).sign()
    agreeing = torch.where(flat.sign() == sign, flat, 0.0)
    count = (agreeing != 0).sum(0).clamp_min(1)
    return (agreeing.sum(0) / count).view_as(deltas[0])
