"""Check that a contender is honest: its time beside its stated FLOPs at the machine's rate.

Every matrix operation of one run is recorded with its shapes, then timed alone on random numbers
of the same shapes and strides. The sum is what the FLOPs cost at the measured rate; what the run
takes beyond is named operation by operation from a profile.
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tests.benchmarks.clock import Clock, Work
from tests.benchmarks.profiles import top_operations

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm)
_SOLVE = _aten._linalg_solve_ex
_MATRIX_NAMES = ("mm", "addmm", "bmm", "baddbmm", "linalg_")
_Call = tuple[Any, tuple[Any, ...]]
_EVICTION_BYTES = 256 << 20
PARTS: dict[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product",),
    "soft-max and losses": ("log_softmax", "softmax", "nll_loss", "exp", "sum"),
    "copies": ("copy", "clone", "cat", "fill", "zero", "slice", "index", "embedding", "to_copy"),
    "Python": ("(outside operations)",),
}
"""What is not a matrix operation → how its names begin; all others are element-wise."""


class _Recorder(TorchDispatchMode):
    """Counts matrix operations by overload and by the geometry of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[_Call] = Counter()
        self.flops = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in _PRODUCTS:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            self.calls[func, tuple(_geometry(a) for a in args)] += 1
        elif packet is _SOLVE:
            n, m = args[0].shape[-1], args[1].shape[-1]
            self.flops += 2 * n**3 / 3 + 2 * n * n * m
            self.calls[func, tuple(_geometry(a) for a in args[:2])] += 1
        return out


def _geometry(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return (tuple(argument.shape), argument.stride(), argument.dtype, argument.device)
    return argument


def _like(geometry: Any) -> Any:
    if not isinstance(geometry, tuple):
        return geometry
    size, stride, dtype, device = geometry
    return torch.empty_strided(size, stride, dtype=dtype, device=device).normal_()


def account(work: Work, clock: Clock, repeats: int = 3) -> dict[str, Any]:
    """Hold a piece of work against its own matrix operations.

    Args:
        work: The work; it is run three times.
        clock: Times the work and its operations.
        repeats: Timings of each distinct operation; the median counts.

    Returns:
        `flops`, `seconds`, `matrix_seconds` (the FLOPs at the measured rate), `matrix_gflops`
        (that rate), `over_matrix` (seconds / matrix_seconds), `elsewhere_share` (what a profile
        finds outside matrix operations, as a share of the whole), `parts` (that share by
        `PARTS`), `elsewhere` (the largest operations there), and `unexplained`: by how much the
        seconds outside that share exceed matrix_seconds, relative to them. An operation repeated
        alone finds its operands in the cache, which in the work between others it seldom does:
        `matrix_seconds_cold` are those of operands in main memory, an upper bound, and
        `unexplained_cold` is beside them.
    """
    with _Recorder() as recorder:
        work()
    seconds = clock(work)
    matrix = cold = 0.0
    other = torch.zeros(_EVICTION_BYTES // 4, device=clock.device)
    for (func, geometries), count in recorder.calls.items():
        arguments = [_like(g) for g in geometries]
        timings = [clock(lambda f=func, a=arguments: f(*a)) for _ in range(repeats + 1)]  # type: ignore[misc]
        matrix += count * statistics.median(timings[1:])
        timings = []
        for _ in range(repeats):
            other.add_(1)  # takes the operands' place in the cache
            timings.append(clock(lambda f=func, a=arguments: f(*a)))  # type: ignore[misc]
        cold += count * statistics.median(timings)
    others = [r for r in top_operations(work, clock.device, 40) if not _is_matrix(r["operation"])]
    share = sum(row["share"] for row in others)
    parts: dict[str, float] = {}
    for row in others:
        part = _part(row["operation"])
        parts[part] = parts.get(part, 0.0) + row["share"]
    return {
        "flops": recorder.flops,
        "seconds": seconds,
        "matrix_seconds": matrix,
        "matrix_seconds_cold": cold,
        "matrix_gflops": recorder.flops / matrix / 1e9,
        "over_matrix": seconds / matrix,
        "elsewhere_share": share,
        "unexplained": seconds * (1 - share) / matrix - 1,
        "unexplained_cold": seconds * (1 - share) / cold - 1,
        "parts": dict(sorted(parts.items(), key=lambda item: -item[1])),
        "elsewhere": others[:10] + others[-2:],
    }


def _part(operation: str) -> str:
    name = operation.removeprefix("aten::").lstrip("_")
    for part, beginnings in PARTS.items():
        if name.startswith(beginnings):
            return part
    return "element-wise"


def _is_matrix(operation: str) -> bool:
    return operation.startswith("aten::") and operation[6:].lstrip("_").startswith(_MATRIX_NAMES)
