"""The update of the hypernetwork methods: networks, and how their output becomes a shift.

This half edits; `rledit.editors.hypernetwork_editor` has the half that trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from rledit.editors.base import State, prefixed, unprefixed
from rledit.editors.conventions import BatchConventions
from rledit.editors.hypernetwork_config import HypernetworkConfig
from rledit.editors.moment_editor import MomentEditor, Shape
from rledit.lazy_torch import Tensor, nn, torch
from rledit.model import EditableModel
from rledit.seeding import seeded
from rledit.shift import Solution

if TYPE_CHECKING:
    from rledit.hypernetwork import Hypernetwork


class HypernetworkUpdate(MomentEditor):
    """Shifts from hypernetworks, one per linear shape.

    Attributes:
        seed_decides_start: Whether what it edits before any training depends on its seed. Its
            networks do nothing then, whatever they are drawn from.
    """

    config: HypernetworkConfig
    step_setting = "initial_step"
    seed_decides_start: ClassVar[bool] = False

    @classmethod
    def batch_conventions_of(cls, config: HypernetworkConfig) -> BatchConventions:
        """Order, loss groups and moments of the recipe."""
        return config.conventions()

    def __init__(self, model: EditableModel, config: HypernetworkConfig) -> None:
        self.conventions = config.conventions()
        self.tokens = config.tokens
        super().__init__(model, config)
        self.networks = self._new_networks()

    @property
    def updates_moments_while_editing(self) -> bool:
        """Whether the stream's rows enter the moments; where there are none, they begin them."""
        return self.config.update_moments_while_editing or not all(
            float(moments.count) for moments in self.moments.values()
        )

    def solve(self, shape: Shape, keys: Tensor, z: Tensor) -> Solution:
        """Shift factors from the network's pseudo keys and values, by the configured rule."""
        return self._solution(shape, keys, *self._factors(shape, keys, z))

    def solve_incomplete(self, shape: Shape, keys: Tensor, z: Tensor, true_z: Tensor) -> Solution:
        """As the release trains on a batch whose last loss group is not full.

        The batch is edited with zeroed value gradients, and the network's gradient is taken as if
        it had been edited with the true ones: shift and gradient disagree.
        """
        factors = self._factors(shape, keys, z)
        if torch.is_grad_enabled():
            true = self._factors(shape, keys, true_z)
            factors = tuple(
                a.detach() + (b - b.detach()) for a, b in zip(factors, true, strict=True)
            )
        return self._solution(shape, keys, *factors)

    def _factors(self, shape: Shape, keys: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """(M, n, ...) what the rule is solved from: pseudo keys and values, or differences D."""
        network = self.networks[shape]
        pseudo_keys, pseudo_values = network(z)
        step = network.step[:, None, None]
        if self.config.rule == "outer_product":
            return pseudo_keys, -step * pseudo_values
        agreement = (keys * pseudo_keys).sum(-1, keepdim=True)
        return (-step * agreement * pseudo_values,)

    def _solution(self, shape: Shape, keys: Tensor, *factors: Tensor) -> Solution:
        """Shift factors by the configured rule."""
        if self.config.rule == "outer_product":
            pseudo_keys, differences = factors
            none = torch.ones(len(keys), device=keys.device)
            return Solution(pseudo_keys, differences, none, 0.0)
        ridge = self.networks[shape].ridge
        return self.solve_equation(shape, keys, factors[0], ridge)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for network in self.networks.values() for p in network.parameters()]

    def _new_networks(self) -> dict[Shape, Hypernetwork]:
        from rledit.hypernetwork import Hypernetwork

        config = self.config
        with seeded(config.seed):
            return {
                shape: Hypernetwork(
                    *shape,
                    len(names),
                    rank=config.rank,
                    n_blocks=config.n_blocks,
                    initial_step=self.step_size,
                    initial_ridge=config.initial_ridge,
                    step_form=self.conventions.step_form,
                    init_std=_scale(config.init_std, shape),
                ).to(self.model.device, self.model.compute_dtype)
                for shape, names in self.shapes.items()
            }

    def state_dict(self) -> State:
        """Networks and moments."""
        state = super().state_dict()
        for prefix, network in self._saved_networks().items():
            copies = {k: v.detach().clone() for k, v in network.state_dict().items()}
            state |= prefixed(prefix, copies)
        return state

    def load_state_dict(self, state: State) -> None:
        """Put saved networks and moments back."""
        super().load_state_dict(state)
        for prefix, network in self._saved_networks().items():
            network.load_state_dict(unprefixed(prefix, state))

    def _saved_networks(self) -> Mapping[str, nn.Module]:
        """Everything that is trained, by what its keys in a state begin with."""
        return {f"network.{i}x{o}.": network for (i, o), network in self.networks.items()}


def _scale(init_std: float | Literal["auto"], shape: Shape) -> float:
    """The standard deviation of a network's first factors: 1/√d keeps the size of a row."""
    return float(sum(shape) ** -0.5) if init_std == "auto" else init_std
