"""Curvature of the loss on ordinary text, and on the edits so far, as CrispEdit keeps it.

Per target module: the sums of k kᵀ and g gᵀ over text, which come from outside, those over the
edits, and the flat directions that follow from both together, every token counting the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rledit.editors.base import State, Texts, prefixed, unprefixed
from rledit.lazy_torch import Tensor, torch
from rledit.locate.covariance import CovarianceError, KeyCovariance, called
from rledit.locate.flat_directions import FlatDirections, flat_directions
from rledit.locate.output_gradients import (
    accumulate_curvature,
    as_samples,
    covariances_of,
    gradients_of,
    width_of,
)
from rledit.model import EditableModel
from rledit.tokenization import Sample

_TEXTS_PER_PASS = 64


class RowTotal:
    """A sum of x xᵀ over rows, and their number.

    Args:
        total: (d, d), grows in place.
        count: Rows in it.
    """

    def __init__(self, total: Tensor, count: int = 0) -> None:
        self.total = total
        self.count = count

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Add rows (n, d)."""
        rows = rows.to(self.total)
        self.total.addmm_(rows.T, rows)
        self.count += len(rows)

    @property
    def finite(self) -> bool:
        """Whether every row so far was of numbers."""
        return bool(self.total.diagonal().isfinite().all())


Totals = dict[str, RowTotal]


class TextCurvature:
    """The flat directions of the target modules, as text and edits leave them.

    Args:
        model: The model.
        energy: γ, see `flat_directions`.
        recompute_at: Relative change of a matrix above which the sums over text are taken anew.

    Attributes:
        texts: Gives the texts, where sums are taken anew.
        recomputed: How often they were; for the caller to reset.
    """

    def __init__(self, model: EditableModel, energy: float, recompute_at: float | None) -> None:
        self.texts: Texts | None = None
        self.recomputed = 0
        self._model = model
        self._energy = energy
        self._recompute_at = recompute_at
        self._names = covariances_of(model.modules, ("output_gradients",))
        self._given: Totals = {}
        self._text: Totals = {}
        self._edits: Totals = {}
        self._taken_at: dict[str, Tensor] = {}
        self._flat: dict[str, FlatDirections] = {}

    def load(self, covariance: Mapping[str, KeyCovariance]) -> None:
        """Take the sums over text on the unedited model.

        Raises:
            CovarianceError: One is missing, is of nothing, or does not fit.
        """
        found: Totals = {}
        for name in self._names:
            if name not in covariance:
                raise CovarianceError(
                    f"no {called(name)} was given; there are {sorted(covariance)}"
                )
            given, width = covariance[name], width_of(self._model, name)
            given.mean()  # refuses one of nothing
            if len(given.total) != width:
                side = "outputs" if name not in self._model.modules else "inputs"
                raise CovarianceError(
                    f"{called(name)}: {len(given.total)} features, the linear has {width} {side}; "
                    "it belongs to another model"
                )
            found[name] = RowTotal(given.total.to(self._model.device), given.count)
        self._given = found
        self.restart()

    def restart(self) -> None:
        """Forget edits and what was taken anew: the curvature of the unedited model."""
        again = bool(self._edits or self._taken_at) or self._text is not self._given
        self._text, self._edits, self._taken_at = self._given, {}, {}
        if again:
            self._flat.clear()

    def flat(self, name: str) -> FlatDirections:
        """The flat directions of a target module."""
        if name not in self._flat:
            if not self._text:
                raise CovarianceError(
                    f"the covariances of {name!r} are needed; call load_covariance first"
                )
            keys, gradients = self._mean(name), self._mean(gradients_of(name))
            dtype = self._model.compute_dtype
            self._flat[name] = flat_directions(keys, gradients, self._energy, name, dtype)
        return self._flat[name]

    def add_edits(self, samples: Sequence[Sample]) -> None:
        """Count the answer tokens of some edits, on the model as it is now, among those of text."""
        for name, found in self._summed([samples]).items():
            if name in self._edits:
                found.total += self._edits[name].total
                found.count += self._edits[name].count
            self._edits[name] = found
        self._flat.clear()

    def follow(self) -> None:
        """Take the sums over text anew where the matrices have moved far since they were taken."""
        if self._recompute_at is None or not self._moved_beyond(self._recompute_at):
            return
        if self.texts is None:
            raise ValueError("covariances are to be taken anew; call load_texts before the stream")
        samples = as_samples(self.texts())
        parts = range(0, len(samples), _TEXTS_PER_PASS)
        self._text = self._summed(samples[first : first + _TEXTS_PER_PASS] for first in parts)
        weights = self._model.weights
        self._taken_at = {name: weights.read(name).clone() for name in self._model.modules}
        self.recomputed += 1
        self._flat.clear()

    def _moved_beyond(self, part: float) -> bool:
        weights = self._model.weights
        for name in self._model.modules:
            taken = self._taken_at.get(name, weights.original(name))
            change = torch.linalg.vector_norm(weights.read(name) - taken, dtype=torch.float64)
            if float(change) > part * float(torch.linalg.vector_norm(taken, dtype=torch.float64)):
                return True
        return False

    def _summed(self, parts: Iterable[Sequence[Sample]]) -> Totals:
        """Sums over the predicting positions of samples, of all ranks."""
        model = self._model
        found = {}
        for name in self._names:
            like = self._given[name].total
            found[name] = RowTotal(torch.zeros_like(like))
        keys = {name: found[name] for name in model.modules}
        gradients = {name: total for name, total in found.items() if name not in keys}
        for part in parts:
            model.prefix_cache.clear()
            accumulate_curvature(model, part, keys, gradients)
        for total in found.values():
            count = torch.tensor(total.count)
            model.ranks.all_reduce_(total.total)
            model.ranks.all_reduce_(count)
            total.count = int(count)
        return found

    def _mean(self, name: str) -> Tensor:
        total, count = self._text[name].total, self._text[name].count
        if name in self._edits:
            total, count = total + self._edits[name].total, count + self._edits[name].count
        return total / count

    def state_dict(self) -> State:
        """What was taken along the stream: sums over edits, and those over text taken anew."""
        text = {} if self._text is self._given else self._text
        return {
            **prefixed("edits.", _tensors(self._edits)),
            **prefixed("text.", _tensors(text)),
            **prefixed("taken_at.", self._taken_at),
        }

    def load_state_dict(self, state: State) -> None:
        """Put a saved state back."""
        self.restart()
        device = self._model.device
        self._edits = _totals(unprefixed("edits.", state), device)
        self._text = _totals(unprefixed("text.", state), device) or self._given
        taken = unprefixed("taken_at.", state)
        self._taken_at = {name: value.to(device, copy=True) for name, value in taken.items()}
        self._flat.clear()


def _tensors(totals: Totals) -> State:
    sums = {f"{name}.total": found.total for name, found in totals.items()}
    return sums | {f"{name}.count": torch.tensor(found.count) for name, found in totals.items()}


def _totals(state: State, device: torch.device) -> Totals:
    names = [key.removesuffix(".total") for key in state if key.endswith(".total")]
    return {
        name: RowTotal(state[f"{name}.total"].to(device, copy=True), int(state[f"{name}.count"]))
        for name in names
    }


@dataclass(frozen=True)
class HeldFlat:
    """Holds a descent to flat directions: a rule for `rledit.editors.tuning.descend`.

    Attributes:
        curvature: Where they come from.
        gradients: Whether gradients are projected, before Adam, and not its steps.
    """

    curvature: TextCurvature
    gradients: bool

    def gradient(self, name: str, gradient: Tensor) -> Tensor:
        """The flat part of a gradient, where gradients are projected."""
        return self.curvature.flat(name)(gradient) if self.gradients else gradient

    def step(self, name: str, step: Tensor) -> Tensor:
        """The flat part of a step, where steps are."""
        return step if self.gradients else self.curvature.flat(name)(step)

    def stepped(self) -> None:
        """Follow the matrices."""
        self.curvature.follow()
