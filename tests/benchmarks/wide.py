"""The editor's own arithmetic at the widths of real models, per module, without a model around it.

Given K and V of one linear: the shift and its gradient (`solve_ratio`), and the whole of the
editor's own work on one batch of a trajectory, hypernetwork forward and backward included
(`editor_ratio`). Both contenders are given the loss gradient of what they differentiate, the
reference implementation dS (d_in x d_out), ours dC (n x d_out), so neither is charged for the
products over reward tokens that make it. The reference implementation's solve is timed once per
shape, at the smallest n: its cost hardly depends on n, and the little that it does is left out in
its favour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from rledit.capture import Captured
from rledit.editors.rledit import RLEdit, RLEditConfig
from rledit.model import EditableModel
from rledit.shift import solve_normal_equation
from tests.benchmarks.clock import Clock, ClockKind
from tests.reference import (
    ReferenceConfig,
    ReferenceMoments,
    reference_network,
    reference_parameters,
    reference_shift,
    reference_shift_gradient,
)

_MODULE = "model.layers.0.mlp.down_proj"
Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class WideBenchmark:
    """Shapes and row counts.

    Attributes:
        shapes: (d_in, d_out) of the linear layers.
        rows: Values of n.
        rank: Rank of the hypernetwork.
        n_blocks: Blocks of the hypernetwork.
        repeats: Timed repeats of ours.
        seed: Seed of K, V and the networks.
    """

    shapes: tuple[Shape, ...] = ((4096, 14336), (14336, 4096))
    rows: tuple[int, ...] = (60, 100, 400, 1000)
    rank: int = 1024
    n_blocks: int = 4
    repeats: int = 3
    seed: int = 0


def run_wide(setting: WideBenchmark, device: torch.device, kind: ClockKind) -> dict[str, Any]:
    """Ratios reference implementation / ours by shape and n, with the seconds behind them."""
    clock = Clock(device, kind)
    result: dict[str, Any] = {"solve_ratio": {}, "editor_ratio": {}, "seconds": {}}
    for shape in setting.shapes:
        name = f"{shape[0]}x{shape[1]}"
        book = _reference(shape, setting, device, clock)
        ours = {str(n): _ours(shape, n, setting, device, clock) for n in setting.rows}
        result["seconds"][name] = {"reference": book, "ours": ours}
        for part in ("solve", "editor"):
            result[f"{part}_ratio"][name] = {n: book[part] / own[part] for n, own in ours.items()}
    return result


def _rows(shape: Shape, n: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device=device).manual_seed(seed)
    keys = torch.randn(n, shape[0], generator=generator, device=device)
    values = 1e-3 * torch.randn(n, shape[1], generator=generator, device=device)
    return keys, values


def _reference(
    shape: Shape, setting: WideBenchmark, device: torch.device, clock: Clock
) -> dict[str, float]:
    """Seconds of the dense shift with its gradient, and of the editor's whole own work."""
    keys, values = _rows(shape, min(setting.rows), setting.seed, device)
    config = ReferenceConfig(rank=setting.rank, n_blocks=setting.n_blocks)
    tensors = reference_parameters({shape: 1}, config, device=device)[shape]
    weight = torch.zeros(shape[1], shape[0], device=device)
    outer = torch.randn(shape, device=device)
    moments = ReferenceMoments()
    found: dict[str, Tensor] = {}

    def differences(track: bool) -> Tensor:
        with torch.set_grad_enabled(track):
            h = reference_network(found["z"], tensors, 0)
            step = config.initial_step * tensors["step_parameter"][0].exp()
            agreement = (keys * h[:, : shape[0]]).sum(1, keepdim=True)
            return -step * agreement * h[:, shape[0] :]

    def before() -> None:
        rows = torch.cat([keys, values], 1)
        moments.add(rows)
        found["z"] = moments.normalise(rows)
        found["differences"] = differences(track=False)

    def solve() -> None:
        ridge = tensors["log_ridge"][0].exp()
        found["shift"] = reference_shift(keys, found["differences"], ridge)
        found["gradient"], found["ridge"] = reference_shift_gradient(
            keys, found["shift"], ridge, outer
        )

    def after() -> None:
        weight.add_(found["shift"].T)
        ridge = tensors["log_ridge"][0].exp()
        torch.autograd.backward(
            [differences(track=True), ridge], [found["gradient"], found["ridge"]]
        )

    for tensor in tensors.values():
        tensor.requires_grad_()
    around = clock(before)
    with torch.no_grad():
        solved = clock(solve)
    around += clock(after)
    # Once more, now that the gradients exist and are added to, as inside a trajectory.
    around = min(around, clock(before) + clock(after))
    return {"solve": solved, "editor": solved + around}


class _OneLinear(nn.Module):
    """As much of a language model as an editor needs that is handed K and V: one target module."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="llama")
        layer, mlp = nn.Module(), nn.Module()
        mlp.down_proj = nn.Linear(*shape, bias=False, device=device)
        layer.mlp = mlp
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([layer])


class _Given(RLEdit):
    """RLEdit's own work on a batch, between the capture and the gradient of the reward."""

    def work(self, captured: Captured, gradient: Tensor) -> None:
        with torch.enable_grad():
            self._update_moments(captured)
            proposal = self.shift_by(captured)
        self.merge(proposal)
        leaves = {n: s.detached(requires_grad=True) for n, s in proposal.shifts.items()}
        leaves[_MODULE].right.grad = gradient
        self._backward(proposal, leaves, proposal.squared_norm(), 1.0)


def _ours(
    shape: Shape, n: int, setting: WideBenchmark, device: torch.device, clock: Clock
) -> dict[str, float]:
    """Seconds of the low-rank shift with its gradient, and of the editor's whole own work."""
    keys, values = _rows(shape, n, setting.seed, device)
    model = EditableModel(_OneLinear(shape, device), None, (_MODULE,))
    config = RLEditConfig(
        modules=(_MODULE,),
        initial_step=ReferenceConfig.initial_step,
        rank=setting.rank,
        n_blocks=setting.n_blocks,
    )
    editor = _Given(model, config)
    captured = Captured(
        {_MODULE: keys}, {_MODULE: values}, torch.zeros(n, dtype=torch.long, device=device), 0.0
    )
    gradient = torch.randn(n if n <= shape[0] else shape[0], shape[1], device=device)
    ridge = torch.ones(1, device=device, requires_grad=True)
    differences = values[None].clone().requires_grad_()

    def solve() -> None:
        solution = solve_normal_equation(keys[None], differences, ridge)
        solution.right.backward(gradient[None])

    def whole() -> None:
        editor.work(captured, gradient)

    return {
        "solve": _median(solve, setting, clock),
        "editor": _median(whole, setting, clock),
    }


def _median(work: Callable[[], None], setting: WideBenchmark, clock: Clock) -> float:
    work()
    return sorted(clock(work) for _ in range(setting.repeats))[setting.repeats // 2]
