"""State of an unfinished optimiser step of a hypernetwork, so that training resumes at any batch.

A step runs through whole trajectories, and with the published settings training is one step. Beside
networks, moments and optimiser, which outlive a step, a trajectory carries the edited weights, the
gradients added up so far, the window of the reward, and the means that the curve will show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rledit.editors.base import State, prefixed, unprefixed
from rledit.lazy_torch import nn, torch
from rledit.model import EditableModel
from rledit.reward import Reward
from rledit.tokenization import EditBatch

MEASURED = ("loss", "equivalence", "divergence", "norm", "grad_norm")
PREFIX = "under_way."


@dataclass(kw_only=True)
class UnderWay:
    """How far a step has come.

    Attributes:
        done: Batches that are done, over all trajectories of the step.
        totals: What was measured of each trajectory begun, by name in `MEASURED`.
        reward: The reward of the trajectory under way; None between two of them.
    """

    done: int = 0
    totals: list[dict[str, float]] = field(default_factory=list)
    reward: Reward | None = None

    def begin(self, reward: Reward) -> None:
        """A trajectory begins."""
        self.totals.append(dict.fromkeys(MEASURED, 0.0))
        self.reward = reward

    def means(self) -> dict[str, float]:
        """What the step measured: means over its trajectories."""
        n = len(self.totals)
        return {name: sum(found[name] for found in self.totals) / n for name in MEASURED}

    def state_dict(self, model: EditableModel, parameters: Sequence[nn.Parameter]) -> State:
        """Everything of the step as tensors; every rank makes this call, sharded weights in it."""
        values = [[found[name] for name in MEASURED] for found in self.totals]
        state: State = {
            "done": torch.tensor(self.done),
            "totals": torch.tensor(values, dtype=torch.float64).reshape(-1, len(MEASURED)),
        }
        for i, parameter in enumerate(parameters):
            if parameter.grad is not None:
                state[f"gradient.{i}"] = parameter.grad.clone()
        if self.reward is not None:
            state |= prefixed("weight.", model.weights.state_dict())
            state |= prefixed("reward.", self.reward.state_dict())
        return prefixed(PREFIX, state)


def places_of(trajectories: Sequence[Sequence[EditBatch]]) -> list[tuple[int, int]]:
    """Trajectory and batch of every batch of a step, in the order in which they are run."""
    return [(i, t) for i, batches in enumerate(trajectories) for t in range(len(batches))]


def put_back(
    state: State,
    model: EditableModel,
    parameters: Sequence[nn.Parameter],
    trajectories: Sequence[Sequence[EditBatch]],
    reward: Reward,
) -> UnderWay:
    """A step as it was saved, with the weights and gradients it had.

    Args:
        state: What `UnderWay.state_dict` gave.
        model: The model, unedited.
        parameters: The networks' parameters, in the order in which they were saved.
        trajectories: Those of the step, the same as when it was saved.
        reward: A new one, which is given the saved window.

    Raises:
        ValueError: The trajectories are shorter than what is done of them.
    """
    state = unprefixed(PREFIX, state)
    done, places = int(state["done"]), places_of(trajectories)
    if done >= len(places):
        raise ValueError(
            f"the saved training has done {done} batches of its step, and the trajectories given "
            f"have {len(places)}; go on with the trajectories it was begun with"
        )
    for i, parameter in enumerate(parameters):
        gradient = state.get(f"gradient.{i}")
        parameter.grad = None if gradient is None else gradient.to(parameter, copy=True)
    totals = [dict(zip(MEASURED, row, strict=True)) for row in state["totals"].tolist()]
    found = UnderWay(done=done, totals=totals)
    if window := unprefixed("reward.", state):
        i, t = places[done - 1]
        model.weights.load_state_dict(unprefixed("weight.", state))
        reward.load_state_dict(window, trajectories[i][: t + 1])
        found.reward = reward
    return found
