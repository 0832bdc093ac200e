"""Unit vectors: moments, hypernetwork, losses and success ratios on given inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rledit.hypernetwork import Hypernetwork
from rledit.losses import row_losses
from rledit.moments import RunningMoments
from rledit.protocols import Reading, token_accuracy
from rledit.tokenization import Phase, Sample
from tests.golden.official_choice import official_choice

from .ledger import Ledger
from .names import load_moments, load_networks, moment_state
from .tolerances import UNIT

Tensors = Mapping[str, Tensor]


class UnitError(ValueError):
    """Unit vectors this harness does not know."""


@dataclass
class Units:
    """What a group of unit vectors takes and gives.

    Attributes:
        inputs: Names of tensors that were given to our code.
        outputs: Tensor name → ours.
        numbers: Name in the unit run's manifest entry → ours.
    """

    inputs: set[str] = field(default_factory=set)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    def take(self, tensors: Tensors, name: str) -> Tensor:
        """A tensor of the recording, as input."""
        self.inputs.add(name)
        return tensors[name]

    def compare(
        self, part: str, file: str, chosen: Tensors, numbers: Mapping[str, Any], ledger: Ledger
    ) -> None:
        """Compare all tensors of the group that are not inputs, and the numbers it knows."""
        for name, recorded in chosen.items():
            if name in self.inputs:
                continue
            if name not in self.outputs:
                ledger.fail(part, f"{part}: {name}: nothing of ours answers to this tensor")
                continue
            ledger.check(part, file, name, self.outputs[name], recorded, UNIT)
        run = file.removesuffix(".safetensors")
        for name, ours in self.numbers.items():
            if name in numbers:
                ledger.check(part, f"runs/{run}", name, ours, numbers[name], UNIT)


def observe_units(group: str, tensors: Tensors) -> Units:
    """Our results for one group.

    Raises:
        UnitError: No such group is known.
    """
    if group not in _GROUPS:
        raise UnitError(f"unit vectors {group!r} are not known, only {', '.join(_GROUPS)}")
    units = Units()
    _GROUPS[group](units, tensors)
    return units


def _moments(units: Units, tensors: Tensors) -> None:
    cases = {name.split("/")[1] for name in tensors if name.startswith("rms/")}
    for case in cases:
        prefix = f"rms/{case}"
        moments = RunningMoments(tensors[f"{prefix}/0/x"].shape[-1], "official")
        step = 0
        while f"{prefix}/{step}/x" in tensors:
            moments.update(units.take(tensors, f"{prefix}/{step}/x"))
            for name, value in moment_state(moments).items():
                units.outputs[f"{prefix}/{step}/{name}"] = value
            step += 1
        query = units.take(tensors, f"{prefix}/query")
        units.outputs[f"{prefix}/forward"] = moments.normalise(query)
    units.numbers["rms_one_row_is_nan"] = _refuses_one_row()


def _refuses_one_row() -> bool:
    """Where the release computes NaN from a one-row micro-batch, ours stops with an error."""
    try:
        RunningMoments(2, "official").update(torch.ones(1, 2))
    except ValueError:
        return True
    return False


def _network(units: Units, tensors: Tensors) -> None:
    state = {
        name.removeprefix("net/state/"): units.take(tensors, name)
        for name in tensors
        if name.startswith("net/state/")
    }
    keys, values = units.take(tensors, "net/keys"), units.take(tensors, "net/values_grad")
    shape = (keys.shape[1], values.shape[1])
    n_modules = len(state["lr.weight"])
    network = Hypernetwork(
        *shape,
        n_modules,
        rank=state["blocks.0.A"].shape[1],
        n_blocks=sum(name.endswith(".A") for name in state),
        initial_step=1.0,
        step_form="raw",
    )
    load_networks({shape: network}, {f"{shape}.{name}": value for name, value in state.items()})
    moments = RunningMoments(sum(shape), "official")
    prefix = "normalizer."
    recorded = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    load_moments(moments, recorded)
    z = moments.normalise(torch.cat([keys, values], dim=-1))
    pseudo_keys, pseudo_values = network(z.expand(n_modules, -1, -1))
    for j in range(n_modules):
        units.outputs[f"net/module{j}/pseudo_keys"] = pseudo_keys[j]
        units.outputs[f"net/module{j}/pseudo_values_grad"] = pseudo_values[j]


def _losses(units: Units, tensors: Tensors) -> None:
    logits = units.take(tensors, "loss/logits").clone().requires_grad_()
    labels = units.take(tensors, "loss/labels")
    reference = F.log_softmax(units.take(tensors, "loss/refer_logits"), dim=-1)
    mask = labels >= 0
    samples = tuple(Sample(torch.zeros_like(row), row) for row in labels)
    weights = Phase(samples, len(samples)).weights.float()[mask.nonzero()[:, 0]]
    for name, gradient, divergence in (
        ("cross_entropy", "cross_entropy_grad", False),
        ("kl_div", "kl_div_grad_logits", True),
    ):
        rows = torch.full((int(mask.sum()),), divergence)
        compared = reference[mask] if divergence else None
        losses = row_losses(logits[mask], labels[mask], rows, compared)
        loss = losses @ weights
        units.outputs[f"loss/{name}"] = loss.detach()
        (units.outputs[f"loss/{gradient}"],) = torch.autograd.grad(loss, logits)


def _success(units: Units, tensors: Tensors) -> None:
    """Shares the logits and labels of the losses."""
    logits, labels = tensors["loss/logits"], tensors["loss/labels"]
    readings = [
        Reading(row[row >= 0], predicted[row >= 0], 0.0)
        for row, predicted in zip(labels, logits.argmax(-1), strict=True)
    ]
    units.outputs["succ/plain"] = torch.tensor([token_accuracy.score(r) for r in readings])


def _choice(units: Units, tensors: Tensors) -> None:
    cases = {name.split("/")[1] for name in tensors if name.startswith("succ_old/")}
    for case in cases:
        given = ("logits", "labels", "old_labels")
        inputs = [units.take(tensors, f"succ_old/{case}/{name}") for name in given]
        units.outputs[f"succ_old/{case}/out"] = official_choice(*inputs)


_GROUPS = {
    "rms": _moments,
    "net": _network,
    "loss": _losses,
    "succ": _success,
    "succ_old": _choice,
}
