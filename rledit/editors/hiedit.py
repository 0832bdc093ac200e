"""HiEdit: RLEdit with a gate that picks the modules a batch is written into (arXiv 2604.11214).

A second network looks at the batch's keys and value gradients in all M target modules and picks K
of them; their shifts are RLEdit's, the others' are zero: S_j ← m_j S_j with m the mask of the K
largest of the gate's M numbers, differentiated straight through. As the mask multiplies the factors
(K, C) that a shift is kept in, the reward's gradient gives m_j its own, ⟨∂L/∂S_j, S_j⟩, for modules
that are left out too. The gate's article trains it on L minus the loss with all modules edited. No
mask is in that one, so that the gradient of the difference is that of L, and it is not computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from rledit.capture import Captured
from rledit.editors.conventions import FROM_RECIPE, OFFICIAL, Conventions, Recipe
from rledit.editors.hypernetwork_config import HypernetworkConfig
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.moment_editor import Proposal
from rledit.lazy_torch import Tensor, nn, torch
from rledit.model import EditableModel
from rledit.seeding import seeded
from rledit.shift import LowRankShift
from rledit.step_size import SettingError
from rledit.tokenization import EditBatch

GateSignal = Literal["loss", "norm"]


@dataclass(frozen=True, kw_only=True)
class HiEditConfig(HypernetworkConfig):
    """HiEdit's settings; its defaults are those of its form on the normal equation.

    Attributes:
        active_modules: K, target modules that a batch is written into; None: half of them, as of
            the 12 on Llama-3-8B. With all of them the method is RLEdit.
        gate_width: Features that the gate has of a module.
        gate_learns_from: What the gate is trained on: the whole `loss`, or, as its release has it
            in effect, the `norm` of the shifts alone.
        gate_normalised: Normalise the gate's rows by the running moments. The release has a
            normaliser there that never sees a row, which multiplies them by 8e6.
    """

    active_modules: int | None = None
    gate_width: int = 256
    gate_learns_from: GateSignal = FROM_RECIPE
    gate_normalised: bool = FROM_RECIPE

    # Its release, unlike RLEdit's, takes every group's value gradients as they are.
    official: ClassVar[Conventions] = replace(OFFICIAL, incomplete_groups="keep")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.past_keys:
            raise SettingError(
                "past_keys",
                "a gate leaves modules out, whose keys it has no account of; leave it 0",
            )

    @classmethod
    def recipe_settings(cls, recipe: Recipe) -> dict[str, Any]:
        """RLEdit's, and what reaches the gate."""
        release = recipe == "official"
        gate = {"gate_learns_from": "norm" if release else "loss", "gate_normalised": not release}
        return {**super().recipe_settings(recipe), **gate}


@dataclass(frozen=True, eq=False)
class GatedProposal(Proposal):
    """The shifts proposed for a batch, those of modules left out being zero.

    Attributes:
        mask: (modules,) 1 for the modules that are edited, in their order; carries the gate's graph
            where gradients are enabled.
    """

    mask: Tensor


class HiEdit(HypernetworkEditor):
    """RLEdit on K of M target modules, which a trained gate picks for each batch."""

    name = "hiedit"
    Config = HiEditConfig
    config: HiEditConfig
    seed_decides_start = True  # its gate picks modules as it is drawn
    checked = {
        "reference": "test_the_gate_against_plain_loops",
        "properties": "test_with_all_modules_it_is_rledit",
    }

    def __init__(self, model: EditableModel, config: HiEditConfig) -> None:
        from rledit.editors.gate import Gate

        super().__init__(model, config)
        count = len(model.modules)
        given = config.active_modules
        self.active_modules = -(-count // 2) if given is None else given
        if not 1 <= self.active_modules <= count:
            raise ValueError(
                f"active_modules: {self.active_modules} of {count} target modules cannot be "
                f"edited; set it to a number from 1 to {count}"
            )
        with seeded(config.seed):
            gate = Gate(self.shapes, model.modules, config.gate_width)
        self.gate = gate.to(model.device, model.compute_dtype)
        group = {"params": list(self.gate.parameters()), "lr": config.meta_lr}
        self.optimiser.add_param_group({**group, "full_lr": config.meta_lr})
        self._merged: list[float] = []  # the mask of the last shifts that were merged

    def shift_by(self, captured: Captured, zeroed: Tensor | None = None) -> GatedProposal:
        """RLEdit's shifts, those of the modules that the gate leaves out being zero."""
        from rledit.editors.gate import straight_through

        whole = super().shift_by(captured, zeroed)
        mask = straight_through(self.gate(self._rows(captured)), self.active_modules)
        applied = mask if self.config.gate_learns_from == "loss" else mask.detach()
        places = {name: i for i, name in enumerate(self.model.modules)}
        solutions, shifts = {}, {}
        for shape, names in self.shapes.items():
            own = applied[[places[name] for name in names]]
            found = whole.solutions[shape]
            solution = replace(found, right=found.right * own[:, None, None])
            solutions[shape] = solution
            for j, name in enumerate(names):
                left = None if solution.left is None else solution.left[j]
                shifts[name] = LowRankShift(left, solution.right[j])
        ordered = {name: shifts[name] for name in self.model.modules}
        return GatedProposal(ordered, solutions, captured, mask)

    def _rows(self, captured: Captured) -> dict[tuple[int, int], Tensor]:
        """What the gate looks at: rows [K, V] of each shape, (M, n, d)."""
        found = {}
        for shape, names in self.shapes.items():
            rows = torch.stack(
                [torch.cat([captured.keys[n], captured.values[n]], dim=-1) for n in names]
            )
            if self.config.gate_normalised:
                found[shape] = self._clipped(self.normalise(shape, rows))
            else:
                found[shape] = rows / self.moments[shape].eps
        return found

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Edit the modules that the gate picks; ``active_i`` is 1 for those, by their place."""
        metrics = super().edit(batch)
        return metrics | {f"active_{i}": value for i, value in enumerate(self._merged)}

    def merge(self, proposal: Proposal) -> list[float]:
        """Add the shifts of the modules that are edited."""
        assert isinstance(proposal, GatedProposal)
        self._merged = proposal.mask.detach().tolist()
        active = zip(proposal.shifts.items(), self._merged, strict=True)
        return self.model.weights.add_all({n: shift for (n, shift), kept in active if kept})

    def _backward(
        self, proposal: Proposal, leaves: dict[str, Any], norm: Tensor, weight: float
    ) -> None:
        """Carry gradients on into the networks and the gate."""
        super()._backward(proposal, leaves, norm, weight)
        assert isinstance(proposal, GatedProposal)
        if self.config.gate_learns_from == "norm" and self.config.reg_coef:
            sizes = torch.stack([s.squared_norm().detach() for s in proposal.shifts.values()])
            term = (proposal.mask.square() * sizes.to(proposal.mask)).sum()
            (term * (self.config.reg_coef * weight)).backward()

    def _parameters(self) -> list[nn.Parameter]:
        return [*super()._parameters(), *self.gate.parameters()]

    def _clipped_together(self) -> list[list[nn.Parameter]]:
        """The gate is clipped by itself, so that it does not shorten the networks' steps."""
        return [super()._parameters(), list(self.gate.parameters())]

    def _saved_networks(self) -> Mapping[str, nn.Module]:
        return {**super()._saved_networks(), "gate.": self.gate}


def gate_parameters(shapes: Mapping[tuple[int, int], int], width: int) -> int:
    """Parameters of a gate, from how many modules there are of each linear shape."""
    modules = sum(shapes.values())
    encoders = sum(width * (sum(shape) + 1 + 2 * n) for shape, n in shapes.items())
    return encoders + modules * (width * modules + 1)
