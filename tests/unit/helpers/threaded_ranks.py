"""Ranks as threads of one process, one of which runs at a time: fast, and without a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rledit.weights import LocalAccess

T = TypeVar("T")
PATIENCE_SECONDS = 60.0


class InStep(LocalAccess):
    """The access of a model whose passes are collective, without the slices."""

    in_step = True


class ThreadedRank:
    """One of some threads, as `rledit.ranks.Ranks`."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, turn: Any) -> None:
        self.rank = rank
        self.size = size
        self.sums = 0
        self._meeting = meeting
        self._turn = turn
        self._brought: list[Tensor] = []

    def meet(self, others: list[ThreadedRank]) -> None:
        """Get to know all ranks, this one among them."""
        self._others = others

    def all_reduce_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks, which give theirs in this order as well."""
        self.sums += 1
        self._brought = [tensor.clone()]
        self._wait()
        brought = [other._brought[0] for other in self._others]
        assert len({(t.shape, t.dtype) for t in brought}) == 1, "ranks sum different things"
        total = brought[0].clone()
        for part in brought[1:]:
            total += part
        self._wait()
        tensor.copy_(total)

    def _wait(self) -> None:
        self._turn.release()
        try:
            self._meeting.wait(PATIENCE_SECONDS)
        finally:
            self._turn.acquire()


def together(size: int, work: Callable[[ThreadedRank], T]) -> list[T]:
    """What some ranks give that do the same work; they take turns, and pass on where they meet."""
    meeting, turn = threading.Barrier(size), threading.Lock()
    ranks = [ThreadedRank(rank, size, meeting, turn) for rank in range(size)]

    def run(rank: ThreadedRank) -> T:
        rank.meet(ranks)
        with turn:
            try:
                found = work(rank)
                # Nobody leaves before all have come to the end.
                rank.all_reduce_(torch.zeros(1))
            except BaseException:
                meeting.abort()
                raise
        return found

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in ranks]
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]


class Calls:
    """Calls of the modules with parameters of a model, forward and backward, in their order.

    Where slices of the parameters lie on all ranks, each such call gathers them: all ranks have to
    make the same calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self.order: list[tuple[str, str]] = []
        self.tokens = 0
        for name, module in model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.register_forward_pre_hook(self._forward(name))
                module.register_full_backward_pre_hook(self._backward(name))

    def _forward(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.order.append(("forward", name))
            self.tokens += args[0].shape[:-1].numel() if args[0].is_floating_point() else 0

        return hook

    def _backward(self, name: str) -> Any:
        def hook(*_: Any) -> None:
            self.order.append(("backward", name))

        return hook
