"""Training and edit steps of whole models: reference implementation, ours and the floor side by
side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rledit.model import Execution
from rledit.tokenization import EditBatch
from tests.benchmarks.accounting import account
from tests.benchmarks.clock import Clock, ClockKind, interleave, median_ratio, median_seconds
from tests.benchmarks.contenders import Contender, Fast, Floor, Reference, StepSettings
from tests.benchmarks.machine import memory, reset_peak_memory
from tests.benchmarks.models import ModelShape, build, random_batches
from tests.benchmarks.planned import planned_gb
from tests.benchmarks.profiles import top_operations

RATIOS = {
    "train_ratio": min,
    "edit_ratio": min,
    "train_over_floor": max,
    "edit_over_floor": max,
}
"""Top-level figure → how it is taken from those of the configurations."""


@dataclass(frozen=True, kw_only=True)
class StepBenchmark:
    """One model shape and what is edited in it.

    Attributes:
        shape: The model.
        configurations: Name → target modules.
        rank: Rank of the hypernetwork.
        dtype: Type of the model's weights.
        batch_size: Edits per batch.
        depth: Backtracking depth.
        repeats: Timed repeats of each step.
        seed: Seed of weights and batches.
        reference: Whether the reference implementation takes part.
        account: Whether the reference implementation's time is held against its stated FLOPs.
        profile: Whether a profile of our steps is taken.
        memory: Whether memory is looked at in steps of ours, with no contender beside it, and
            what a plan has for it.
        execution: How passes are run.
    """

    shape: ModelShape
    configurations: dict[str, tuple[str, ...]]
    rank: int
    dtype: torch.dtype = torch.float32
    batch_size: int = 20
    depth: int = 10
    repeats: int = 5
    seed: int = 0
    reference: bool = True
    account: bool = True
    profile: bool = False
    memory: bool = False
    execution: Execution = field(default_factory=Execution)


def run_steps(setting: StepBenchmark, device: torch.device, clock: ClockKind) -> dict[str, Any]:
    """Time every configuration.

    Returns:
        The figures of each configuration, those of `RATIOS` over all of them, and, where the
        reference implementation is accounted for, `reference_over_flops` (its time over its FLOPs
        at the machine's measured matrix rate) and `reference_unexplained` (what attention,
        soft-max, element-wise work and Python leave of the difference), see
        `tests.benchmarks.accounting.account`.
    """
    model = build(setting.shape, dtype=setting.dtype, device=device, seed=setting.seed)
    batches = random_batches(
        setting.depth + 2 * (setting.repeats + 3),
        setting.batch_size,
        setting.shape.vocabulary,
        seed=setting.seed,
    )
    found: dict[str, Any] = {}
    for name, modules in setting.configurations.items():
        steps = StepSettings(
            modules=modules,
            rank=setting.rank,
            depth=setting.depth,
            execution=setting.execution,
        )
        found[name] = _configuration(model, batches, steps, setting, Clock(device, clock))
        # Only the first configuration's reference implementation is accounted for: the next differ
        # by modules.
        setting = replace(setting, account=False)
    result: dict[str, Any] = {"configurations": found}
    for key, worst in RATIOS.items():
        values = [c[key] for c in found.values() if key in c]
        if values:
            result[key] = worst(values)
    accounts = [c["reference_account"] for c in found.values() if "reference_account" in c]
    if accounts:
        result["reference_over_flops"] = accounts[0]["over_matrix"]
        result["reference_unexplained"] = accounts[0]["unexplained"]
    return result


def _configuration(
    model: Any,
    batches: Sequence[EditBatch],
    steps: StepSettings,
    setting: StepBenchmark,
    clock: Clock,
) -> dict[str, Any]:
    # The last batches are kept for editing, so that ours has never seen their prompts.
    n_edit = setting.repeats + 3
    kinds: list[Callable[..., Contender]] = [Fast, Floor]
    if setting.reference:
        kinds.insert(0, Reference)
    training: list[Contender] = [kind(model, batches[:-n_edit], steps) for kind in kinds]
    train = interleave({c.name: c.train for c in training}, setting.repeats, clock)
    result: dict[str, Any] = {"modules": list(steps.modules)}
    if setting.account and setting.reference:
        result["reference_account"] = account(training[0].train(setting.repeats + 1), clock)
    if setting.profile:
        work = _ours(training).train(setting.repeats + 2)
        result["profile_train"] = top_operations(work, clock.device)
    for contender in training:
        contender.follow(batches[-n_edit:])
    edit = interleave({c.name: c.edit for c in training}, setting.repeats, clock)
    if setting.profile:
        work = _ours(training).edit(setting.repeats + 2)
        result["profile_edit"] = top_operations(work, clock.device)
    if setting.memory:
        together = {"peak_of_all_contenders": memory(clock.device)[1] * 1e-9}
        ours = _ours(training)
        del training, contender  # the reference implementation holds a copy of the model
        result["memory_gb"] = together | _memory(ours, batches, n_edit, clock.device)
        if (planned := planned_gb(model, steps, batches, clock.device)) is not None:
            result["memory_gb"]["planned"] = planned
    for kind, seconds in (("train", train), ("edit", edit)):
        result[f"{kind}_seconds"] = median_seconds(seconds)
        result[f"{kind}_seconds_per_edit"] = {
            name: value / setting.batch_size for name, value in median_seconds(seconds).items()
        }
        result[f"{kind}_over_floor"] = median_ratio(seconds["ours"], seconds["floor"])
        if "reference" in seconds:
            result[f"{kind}_ratio"] = median_ratio(seconds["reference"], seconds["ours"])
    return result


def _memory(
    ours: Fast, batches: Sequence[EditBatch], n_edit: int, device: torch.device
) -> dict[str, float]:
    """GB that a step of ours takes where it has the device to itself.

    Returns:
        `held` between steps: model, editor and caches, of which `prefixes` are prefixes;
        `train_peak` and `edit_peak`: the most inside a step, what is held included. A plan's
        `planned` is to be held against the greater; it has no prefixes on the device, and a GB for
        what PyTorch does not count. On a CPU these are the process's, with all its imports.
    """
    found: dict[str, float] = {}
    # Places that no repeat has used, see `_configuration`.
    for kind, place in (("edit", n_edit - 2), ("train", n_edit)):
        if kind == "train":
            ours.follow(batches[:-n_edit])
        work = ours.train(place) if kind == "train" else ours.edit(place)
        reset_peak_memory(device)
        found["held"] = memory(device)[0] * 1e-9
        work()
        found[f"{kind}_peak"] = memory(device)[1] * 1e-9
    return found | {"prefixes": ours.model.prefix_cache._cached * 1e-9}


def _ours(contenders: Sequence[Contender]) -> Fast:
    return next(c for c in contenders if isinstance(c, Fast))
