"""The optimiser of hypernetworks: Adam in groups, a warm-up, and a running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rledit.editors.base import State, prefixed, unprefixed
from rledit.editors.hypernetwork_config import HypernetworkConfig
from rledit.lazy_torch import Tensor, nn, torch

if TYPE_CHECKING:
    from rledit.hypernetwork import Hypernetwork


def new_optimiser(networks: Sequence[Hypernetwork], config: HypernetworkConfig) -> torch.optim.Adam:
    """Adam with a learning rate of their own for steps and ridges, and decay for the matrices."""
    parameters = [p for network in networks for p in network.parameters()]
    scalars = [n.step_parameter for n in networks] + [n.log_ridge for n in networks]
    decayed: list[nn.Parameter] = []
    if config.weight_decay:
        named = [item for network in networks for item in network.named_parameters()]
        decayed = [p for name, p in named if name.endswith((".A", ".B"))]
    apart = {id(p) for p in (*scalars, *decayed)}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) not in apart], "lr": config.meta_lr},
        {"params": scalars, "lr": config.meta_lr * config.scalar_lr_factor},
    ]
    if decayed:
        decay = {"weight_decay": config.weight_decay, "decoupled_weight_decay": True}
        groups.append({"params": decayed, "lr": config.meta_lr, **decay})
    for group in groups:
        group["full_lr"] = group["lr"]
    return torch.optim.Adam(groups)


def steps_made(optimiser: torch.optim.Optimizer) -> int:
    """Steps that an Adam has made since its state began."""
    return max((int(state["step"]) for state in optimiser.state.values()), default=0)


def adam_state(optimiser: torch.optim.Optimizer) -> State:
    """The state of an Adam as flat tensors."""
    state: State = {}
    for i, values in optimiser.state_dict()["state"].items():
        state |= prefixed(f"{i}.", {k: torch.as_tensor(v).clone() for k, v in values.items()})
    return state


def load_adam_state(optimiser: torch.optim.Optimizer, state: State) -> None:
    """Put what `adam_state` gave back."""
    slots: dict[int, State] = {}
    for index in {key.partition(".")[0] for key in state}:
        slots[int(index)] = unprefixed(f"{index}.", state)
    whole = optimiser.state_dict()
    optimiser.load_state_dict({"state": slots, "param_groups": whole["param_groups"]})


def ramp(step: int, over: int) -> float:
    """Share of the full value in a step, counted from 0, that is reached linearly in `over`."""
    return 1.0 if step >= over else (step + 1) / over


def cosine(step: int, first: int, total: int) -> float:
    """Share of the full value in a step that falls from 1 at `first` to a fiftieth at `total`."""
    done = min(1.0, max(0, step - first) / max(1, total - first))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rates(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Give every group a share of its full learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = share * group["full_lr"]


class RunningMean:
    """A running mean of parameters over optimiser steps.

    Args:
        parameters: Those that it is of; it starts from their values.
        decay: Share of the mean that a step keeps, at most.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self._means = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the parameters in as they are after so many optimiser steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            mean.lerp_(parameter, 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside the context the parameters are the means."""
        before = [p.data for p in self._parameters]
        for parameter, mean in zip(self._parameters, self._means, strict=True):
            parameter.data = mean
        try:
            yield
        finally:
            for parameter, value in zip(self._parameters, before, strict=True):
                parameter.data = value

    @torch.no_grad()
    def take_over(self) -> None:
        """Make the parameters the means, for good."""
        for parameter, mean in zip(self._parameters, self._means, strict=True):
            parameter.copy_(mean)

    def state_dict(self) -> State:
        """The means by place."""
        return {str(i): mean.clone() for i, mean in enumerate(self._means)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put saved means back."""
        for i, mean in enumerate(self._means):
            mean.copy_(state[str(i)])
