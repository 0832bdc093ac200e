"""The ledger of a set: every comparison made, every value consumed, what is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .allowed import is_allowed
from .sets import GoldenSet
from .tolerances import EXACT, Tolerance


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over the whole tensor; 0 for two zeros, NaN pairs are equal."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    both_nan = ours.isnan() & theirs.isnan()
    ours, theirs = ours.masked_fill(both_nan, 0.0), theirs.masked_fill(both_nan, 0.0)
    difference, scale = float((ours - theirs).norm()), float(theirs.norm())
    if difference == 0:
        return 0.0
    return difference / scale if scale else float("inf")


@dataclass
class Ledger:
    """Comparisons of one set.

    Attributes:
        golden: The set.
        failures: Part (run or unit group) → what went wrong in it.
        worst: Kind of value → (error, tolerance, where) of the worst comparison.
        consumed: (source, name) of every value compared or loaded.
    """

    golden: GoldenSet
    failures: dict[str, list[str]] = field(default_factory=dict)
    worst: dict[str, tuple[float, float, str]] = field(default_factory=dict)
    consumed: set[tuple[str, str]] = field(default_factory=set)

    def consume(self, source: str, names: Iterable[str]) -> None:
        """Mark values as used: inputs and starting points that were loaded."""
        self.consumed |= {(source, name) for name in names}

    def fail(self, part: str, message: str) -> None:
        """Note a failure of a part."""
        self.failures.setdefault(part, []).append(message)

    def check(
        self,
        part: str,
        source: str,
        name: str,
        ours: Any,
        theirs: Any,
        tolerance: Tolerance,
        origin: Tensor | None = None,
        oracle: Callable[[], tuple[Tensor, float]] | None = None,
    ) -> None:
        """Compare one value and mark it as consumed.

        Args:
            part: Run or unit group the comparison belongs to.
            source: File of the set, or runs/RUN.
            name: Name of the value in its source.
            ours: What this project computes.
            theirs: What was recorded.
            tolerance: Largest relative error.
            origin: Compare both as differences from this tensor.
            oracle: Asked where the two differ: the value in float64, and how uncertain a float32
                recording of it is. The recording has to be that near to it, and ours as near as
                the tolerance asks, or nearer than the recording.
        """
        self.consume(source, [name])
        where = f"{part}: {name}"
        if isinstance(theirs, str | bool) or theirs is None:
            if ours != theirs:
                self.fail(part, f"{where}: {ours!r}, recorded {theirs!r}")
            return
        sampled = partial(self.golden.sampled, source, name)
        mine, recorded = sampled(torch.as_tensor(ours)), torch.as_tensor(theirs)
        if mine.shape != recorded.shape:
            self.fail(part, f"{where}: shape {list(mine.shape)}, recorded {list(recorded.shape)}")
            return
        if origin is not None:
            origin = sampled(origin)
            mine, recorded = mine.double() - origin.double(), recorded.double() - origin.double()
        if tolerance.absolute:
            error = float((mine.double() - recorded.double()).abs().max())
        else:
            error = relative_error(mine, recorded)
        if oracle is not None and not error <= tolerance.limit:
            true, uncertainty = oracle()
            true = sampled(true).reshape(mine.shape).double()
            true = true if origin is None else true - origin.double()
            doubt = relative_error(recorded, true)
            kind = f"{tolerance.kind}, recording uncertain"
            if doubt > self.worst.get(kind, (-1.0, 0.0, ""))[0]:
                self.worst[kind] = (doubt, uncertainty, where)
            if not doubt <= uncertainty:
                self.fail(
                    part,
                    f"{where}: recorded {doubt:.2e} off the float64 value > {uncertainty:.0e}",
                )
            error = relative_error(mine, true)
            error = 0.0 if error <= doubt <= uncertainty else error
        if error > self.worst.get(tolerance.kind, (-1.0, 0.0, ""))[0]:
            self.worst[tolerance.kind] = (error, tolerance.limit, where)
        if not error <= tolerance.limit:
            kind = "absolute" if tolerance.absolute else "relative"
            self.fail(part, f"{where}: {kind} error {error:.2e} > {tolerance.limit:.0e}")

    def equal(self, part: str, label: str, ours: Tensor, theirs: Tensor) -> None:
        """An additional bitwise comparison, which consumes nothing."""
        if not torch.equal(ours, theirs):
            error = relative_error(ours, theirs)
            self.fail(part, f"{part}: {label}: not bitwise equal (relative error {error:.2e})")
        self.worst.setdefault(EXACT.kind, (0.0, 0.0, f"{part}: {label}"))

    def left_over(self) -> list[str]:
        """Values of the set that were neither compared, loaded nor allow-listed."""
        known = {(file, name) for file in self.golden.files for name in self.golden.names(file)}
        known |= {(f, "") for f, e in self.golden.files.items() if "tensors" not in (e or {})}
        for run in self.golden.runs:
            known |= {(f"runs/{run}", name) for name in self.golden.leaves(run)}
        rest = known - self.consumed
        return sorted(f"{source}: {name}" for source, name in rest if not is_allowed(source, name))
