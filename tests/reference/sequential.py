"""LyapLock, BetaEdit and DeltaEdit written out as their releases compute them, dense, in float64.

Keys and outputs come from whole passes of one prompt at a time, values from `reference_values`,
systems are solved as they are published, and what a release carries along (LyapLock's queue with
its scale, its three moments) is carried along. Models are of families whose MLP joins the residual
stream as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tests.reference.value import reference_values

if TYPE_CHECKING:
    from rledit.locate.requests import Request

# The bare prompt weighs one half, as the templates do together.
BARE_WEIGHT = 0.5


class ReferenceSequential(ABC):
    """A method that writes values into several layers, batch after batch.

    Args:
        model: A Hugging Face model in float64; it is edited in place.
        layers: Name of each edited linear → name of its decoder layer, lowest first.
        moments: C of each linear.
        config: The method's settings.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, str],
        moments: Mapping[str, Tensor],
        config: Any,
    ) -> None:
        self.model, self.layers, self.config = model, dict(layers), config
        self.moments = {name: moments[name].double() for name in layers}
        self.original = {name: self.weight(name).clone() for name in layers}
        self.keys = {name: torch.zeros_like(c) for name, c in self.moments.items()}
        self.n_edits = 0

    def weight(self, name: str) -> Tensor:
        """(d_out, d_in), the parameter itself."""
        return self.model.get_parameter(f"{name}.weight").detach()

    @torch.no_grad()
    def edit(self, requests: Sequence[Request]) -> None:
        """Edit with one batch."""
        site = list(self.layers.values())[-1]
        with torch.enable_grad():
            targets, _ = reference_values(
                self.model, requests, site, self.config.value_config(), self.projections(requests)
            )
        self.begin()
        for i, name in enumerate(self.layers):
            keys = self.observed(requests, name, averaged=True)
            shown = self.observed(requests, site, averaged=False)
            residual = (targets.T - shown) / (len(self.layers) - i)
            self.weight(name).add_(self.update(name, keys, residual))
            self.keys[name] += keys @ keys.T
            self.written(name, keys)
        self.n_edits += len(requests)

    def observed(self, requests: Sequence[Request], module: str, averaged: bool) -> Tensor:
        """A linear's averaged inputs (d_in, m), or a layer's outputs at bare prompts (h, m)."""
        columns = []
        for request in requests:
            rows = []
            for sample in request.keys if averaged else request.keys[:1]:
                taken: list[Tensor] = []

                def hook(_: Any, args: Any, output: Any, taken: list[Tensor] = taken) -> None:
                    whole = output[0] if isinstance(output, tuple) else output
                    taken.append(args[0][0, -1] if averaged else whole[0, -1])

                handle = self.model.get_submodule(module).register_forward_hook(hook)
                self.model(input_ids=sample.input_ids[None], use_cache=False)
                handle.remove()
                rows.append(taken[0])
            column = rows[0]
            if len(rows) > 1:
                column = BARE_WEIGHT * rows[0] + (1 - BARE_WEIGHT) * torch.stack(rows[1:]).mean(0)
            columns.append(column)
        return torch.stack(columns, dim=1)

    def projections(self, requests: Sequence[Request]) -> list[Tensor | None] | None:
        """What δ of each edit is multiplied with after every step."""
        return None

    def begin(self) -> None:  # noqa: B027
        """What a method does before a batch is written."""

    @abstractmethod
    def update(self, name: str, keys: Tensor, residual: Tensor) -> Tensor:
        """Δ (d_out, d_in) from keys (d_in, m) and residuals (d_out, m)."""

    def written(self, name: str, keys: Tensor) -> None:  # noqa: B027
        """What a method does once a layer is written."""


class ReferenceLyapLock(ReferenceSequential):
    """With V_0 and E[v vᵀ] as moments of their own, and the queue Z with its scale a."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.crossed = {n: self.original[n] @ c for n, c in self.moments.items()}
        self.outer = {n: v @ self.original[n].T for n, v in self.crossed.items()}
        self.outputs = {n: torch.zeros_like(w) for n, w in self.original.items()}
        self.queue: dict[str, float] = {}
        self.scale: dict[str, float] = {}
        self.threshold: dict[str, float] = {}

    def update(self, name: str, keys: Tensor, residual: Tensor) -> Tensor:
        """The first batch knows no past."""
        weight, moment = self.weight(name), self.moments[name]
        factor = self.config.moment_weight
        if name in self.queue:
            factor *= self.scale[name] * self.queue[name]
        right = residual @ keys.T + factor * (self.crossed[name] - weight @ moment)
        system = keys @ keys.T + factor * moment
        if name in self.queue:
            right += self.outputs[name] - weight @ self.keys[name]
            system += self.keys[name]
        return right @ torch.linalg.inv(system)

    def written(self, name: str, keys: Tensor) -> None:
        """Past outputs, and the queue."""
        weight = self.weight(name)
        self.outputs[name] += weight @ keys @ keys.T
        loss = float(
            (self.moments[name] @ weight.T @ weight).trace()
            - 2 * (self.crossed[name] @ weight.T).trace()
            + self.outer[name].trace()
        )
        if name not in self.queue:
            self.threshold[name] = self.config.drift_budget * loss
            self.queue[name] = self.threshold[name] ** 0.5
            self.scale[name] = self.threshold[name] ** -0.5
        grown = self.queue[name] + self.scale[name] * (loss - self.threshold[name])
        self.queue[name] = max(grown, self.threshold[name] ** 0.5)


class ReferenceAlphaEdit(ReferenceSequential):
    """The system that is not symmetric, with P from a singular value decomposition."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.spaces = {name: self.space(c) for name, c in self.moments.items()}

    def space(self, moment: Tensor) -> Tensor:
        """P of a second moment."""
        left, values, _ = torch.linalg.svd(moment)
        small = left[:, values < self.config.threshold]
        return small @ small.T

    def inside(self, name: str) -> Tensor:
        """What P is multiplied with, beside the batch's keys."""
        return self.keys[name]

    def update(self, name: str, keys: Tensor, residual: Tensor) -> Tensor:
        """Solved for the transpose."""
        space = self.spaces[name]
        system = space @ (keys @ keys.T + self.inside(name))
        system += self.config.ridge * torch.eye(len(space)).double()
        return torch.linalg.solve(system, space @ keys @ residual.T).T


class ReferenceBetaEdit(ReferenceAlphaEdit):
    """C inside the projection, which is made anew."""

    last = 0

    def inside(self, name: str) -> Tensor:
        """Past keys and ordinary text."""
        return self.keys[name] + self.config.moment_weight * self.moments[name]

    def begin(self) -> None:
        """The projection, where enough edits have passed."""
        if self.n_edits - self.last < self.config.refresh_every:
            return
        weight = self.config.moment_weight
        for name, moment in self.moments.items():
            mean = self.keys[name] / self.n_edits + weight * moment
            self.spaces[name] = self.space(mean / (weight + 1))
        self.last = self.n_edits


class ReferenceDeltaEdit(ReferenceAlphaEdit):
    """Values projected where past edits interfere out of the ordinary."""

    mean: float | None = None
    variance = 0.0
    projected: int = 0

    def projections(self, requests: Sequence[Request]) -> list[Tensor | None]:
        """I − U Uᵀ, or None."""
        name = list(self.layers)[-1]
        written = self.weight(name) - self.original[name]
        found: list[Tensor | None] = []
        for i, request in enumerate(requests):
            found.append(None)
            if not bool(written.any()):
                continue
            (key,) = self.bare_keys([request], name)
            norm = float((written @ key.detach()).norm())
            self.mean = norm if self.mean is None else self.mean
            far = abs(norm - self.mean) > self.config.deviations * self.variance**0.5
            if self.n_edits + i + 1 > self.config.settling_edits and self.variance != 0 and far:
                found[-1] = self.complement(written)
                self.projected += 1
                continue
            self.mean = 0.9 * self.mean + 0.1 * norm
            self.variance = 0.9 * self.variance + 0.1 * (norm - self.mean) ** 2
        return found

    def bare_keys(self, requests: Sequence[Request], name: str) -> list[Tensor]:
        """Keys of bare prompts."""
        found: list[Tensor] = []
        linear = self.model.get_submodule(name)
        handle = linear.register_forward_hook(
            lambda _, args, __: found.append(args[0][0, -1].detach())
        )
        for request in requests:
            self.model(input_ids=request.keys[0].input_ids[None], use_cache=False)
        handle.remove()
        return found

    def complement(self, written: Tensor) -> Tensor:
        """Off the leading left singular vectors."""
        left, values, _ = torch.linalg.svd(written)
        large = int((values.square() > self.config.space_floor).sum())
        count = min(large, int(self.config.space_share * len(written)))
        return torch.eye(len(written)).double() - left[:, :count] @ left[:, :count].T
