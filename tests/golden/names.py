"""Names of hypernetworks, moments and their parts in the recordings."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from rledit.editors.moment_editor import Shape
from rledit.hypernetwork import Hypernetwork
from rledit.moments import RunningMoments

_RENAMED = {"step_parameter": "lr.weight", "log_ridge": "lamda.weight"}


def recorded_name(parameter: str) -> str:
    """Recorded name of a hypernetwork's parameter: embeddings there, plain matrices here."""
    if parameter.endswith((".scale", ".shift")):
        return f"{parameter}.weight"
    return _RENAMED.get(parameter, parameter)


def as_recorded(parameter: str, value: Tensor) -> Tensor:
    """A parameter, or its gradient, in the recorded layout: scalars per module are (M, 1)."""
    value = value.detach().clone()
    return value[:, None] if parameter in _RENAMED else value


def network_state(network: Hypernetwork) -> dict[str, Tensor]:
    """All parameters in recorded names and layout."""
    return {recorded_name(n): as_recorded(n, p) for n, p in network.named_parameters()}


def network_gradients(network: Hypernetwork) -> dict[str, Tensor]:
    """All gradients in recorded names and layout; parameters without one are left out."""
    return {
        recorded_name(n): as_recorded(n, p.grad)
        for n, p in network.named_parameters()
        if p.grad is not None
    }


def moment_state(moments: RunningMoments) -> dict[str, Tensor]:
    """The buffers in recorded names; the recorded `var` is the sum of squares."""
    return {
        "mean": moments.mean.clone(),
        "n": moments.count.reshape(1).clone(),
        "var": moments.squares.clone(),
        "std": moments.std.clone(),
    }


def load_moments(moments: RunningMoments, recorded: Mapping[str, Tensor]) -> None:
    """Put recorded buffers (`normalizer.*` without the prefix) into running moments."""
    state = {"count": recorded["n"][0], "mean": recorded["mean"], "squares": recorded["var"]}
    moments.load_state_dict(state)


def parameters_of(networks: Mapping[Shape, Hypernetwork]) -> dict[str, nn.Parameter]:
    """Every parameter of every network by its recorded name, ``(in, out).blocks.0.A``."""
    return {
        f"{shape}.{recorded_name(name)}": parameter
        for shape, network in networks.items()
        for name, parameter in network.named_parameters()
    }


def load_networks(
    networks: Mapping[Shape, Hypernetwork], recorded: Mapping[str, Tensor]
) -> list[str]:
    """Copy recorded parameters into the networks; returns the names used.

    Raises:
        KeyError: A parameter was not recorded.
    """
    parameters = parameters_of(networks)
    for name, parameter in parameters.items():
        parameter.data.copy_(recorded[name].reshape(parameter.shape))
    return list(parameters)
