"""Worth of each saving: the fast path with one of them taken away at a time.

The library has no switches for this; the ways back are written here, and put in place around one
timed step only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rledit.editors.moment_editor as update_module
import rledit.losses as losses_module
import rledit.reward as reward_module
from rledit.micro_batches import MicroBatch, make_micro_batches
from rledit.model import EditableModel, Execution
from rledit.prefix_cache import PrefixCache
from rledit.reward import Reward, final_states
from rledit.shift import Shifts, Solution
from rledit.tokenization import Sample
from tests.benchmarks.clock import (
    Clock,
    ClockKind,
    Contestant,
    Work,
    interleave,
    median_ratio,
    median_seconds,
)
from tests.benchmarks.contenders import Contender, Fast, StepSettings
from tests.benchmarks.models import ModelShape, build, random_batches
from tests.reference import reference_shift
from tests.reference.injected import injected

Without = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class SavingsBenchmark:
    """The step the savings are measured on.

    Attributes:
        shape: The model.
        modules: Target modules.
        rank: Rank of the hypernetwork.
        batch_size: Edits per batch.
        depth: Backtracking depth.
        repeats: Timed repeats.
        seed: Seed of weights and batches.
    """

    shape: ModelShape
    modules: tuple[str, ...]
    rank: int
    batch_size: int = 20
    depth: int = 10
    repeats: int = 3
    seed: int = 0


def run_savings(setting: SavingsBenchmark, device: torch.device, kind: ClockKind) -> dict[str, Any]:
    """Seconds of a training and an edit step without each saving, and their ratios to all savings.

    Returns:
        `train_cost` and `edit_cost`: saving taken away → times the step gets slower.
    """
    model = build(setting.shape, device=device, seed=setting.seed)
    n = setting.repeats + 1
    batches = random_batches(
        setting.depth + 2 * n, setting.batch_size, setting.shape.vocabulary, seed=setting.seed
    )
    settings = StepSettings(modules=setting.modules, rank=setting.rank, depth=setting.depth)
    contenders = {name: Fast(model, batches[:-n], settings) for name in WITHOUT}
    uncached = replace(settings, execution=Execution(cache_bytes=0))
    contenders["frozen prefix: prefixes kept"] = Fast(model, batches[:-n], uncached)
    result: dict[str, Any] = {}
    clock = Clock(device, kind)
    for step in ("train", "edit"):
        contestants = {
            name: _bereft(contender, step, WITHOUT.get(name, nullcontext))
            for name, contender in contenders.items()
        }
        seconds = interleave(contestants, setting.repeats, clock)
        result[f"{step}_seconds"] = median_seconds(seconds)
        result[f"{step}_cost"] = {
            name: median_ratio(own, seconds["nothing"]) for name, own in seconds.items()
        }
        for contender in contenders.values():
            contender.follow(batches[-n:])
    return result


def _bereft(contender: Contender, step: str, without: Without) -> Contestant:
    def prepare(i: int) -> Work:
        work = contender.train(i) if step == "train" else contender.edit(i)

        def run() -> None:
            with without():
                work()

        return run

    return prepare


@contextmanager
def _instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    usual = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, usual)


@contextmanager
def _select_logits(prefix_cache: PrefixCache, rows: Tensor) -> Iterator[list[Tensor]]:
    states: list[Tensor] = []

    def select(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        states.append(args[0].detach().flatten(0, -2)[rows])
        return out.flatten(0, -2)[rows].unsqueeze(0)

    head = prefix_cache._model.get_output_embeddings()  # type: ignore[operator]
    hook = head.register_forward_hook(select)
    try:
        yield states
    finally:
        hook.remove()


@contextmanager
def _enter_whole_layer(prefix_cache: PrefixCache, hidden: Tensor, _: Tensor) -> Iterator[None]:
    def replace_input(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (hidden, *args[1:]), kwargs

    layer = prefix_cache._layers[prefix_cache.first_layer]
    hook = layer.register_forward_pre_hook(replace_input, with_kwargs=True)
    try:
        with prefix_cache._skipping(range(prefix_cache.first_layer)):
            yield
    finally:
        hook.remove()


def _fours(_: EditableModel, samples: Sequence[Sample], least: int = 0) -> list[MicroBatch]:
    fours = [samples[i : i + 4] for i in range(0, len(samples), 4)]
    micro_batches = []
    for start, four in enumerate(fours):
        (micro_batch,) = make_micro_batches(four, 1 << 30)
        shift = 4 * start
        micro_batches.append(
            replace(
                micro_batch,
                index=micro_batch.index + shift,
                row_sample=micro_batch.row_sample + shift,
            )
        )
    return micro_batches


_backward = Reward.backward


def _with_new_references(reward: Reward, shifts: Shifts) -> Any:
    for entry in reward._window:
        with reward._model.weights.unedited():
            entry.reference = final_states(reward._model, entry.batch.unrelated.samples)
    return _backward(reward, shifts)


def _injected(model: EditableModel, shifts: Shifts, **_: Any) -> AbstractContextManager[None]:
    return injected(model, shifts)


def _autograd_losses(
    logits: Tensor, labels: Tensor, kl_rows: Tensor, reference: Tensor | None
) -> Tensor:
    log_p = F.log_softmax(logits, dim=-1)
    losses = -log_p.gather(1, labels[:, None]).squeeze(1)
    if reference is None:
        return losses
    divergence = (reference.exp() * (reference - log_p[kl_rows])).sum(-1)
    return losses.index_put((kl_rows.nonzero().flatten(),), divergence)


def _dense_solve(keys: Tensor, differences: Tensor, ridge: Tensor, name: str = "") -> Solution:
    solved = [reference_shift(k, d, r) for k, d, r in zip(keys, differences, ridge, strict=True)]
    return Solution(None, torch.stack(solved), torch.ones(len(keys)), 0.0)


WITHOUT: dict[str, Without] = {
    "nothing": nullcontext,
    "first edited layer's attention replayed": lambda: _instead(
        PrefixCache, "_restarted", _enter_whole_layer
    ),
    "last MLP on answer positions only": lambda: _instead(
        PrefixCache, "narrow_last_mlp", lambda *_: nullcontext()
    ),
    "logits of answer positions only": lambda: _instead(
        PrefixCache, "_output_rows", _select_logits
    ),
    "one pooled batch, not 4 prompts a forward": lambda: _instead(
        EditableModel, "micro_batches", _fours
    ),
    "references kept": lambda: _instead(Reward, "backward", _with_new_references),
    "merged shift traced, not injected": lambda: _instead(reward_module, "traced", _injected),
    "loss gradient written out": lambda: _instead(losses_module, "row_losses", _autograd_losses),
    "n x n solve": lambda: _instead(update_module, "solve_normal_equation", _dense_solve),
}
"""Saving → the fast path without it."""
