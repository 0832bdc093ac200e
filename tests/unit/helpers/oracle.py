"""The fast editors beside the dense reference implementation: same model, same start, same batches,
compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rledit.editors import EDITORS
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.model import EditableModel, Execution
from rledit.tokenization import EditBatch
from tests.reference import ReferenceAction, ReferenceConfig, ReferenceRLEdit
from tests.unit.helpers.tiny_models import tiny_model, two_shapes

Errors = dict[str, float]
SMALL: dict[str, Any] = {
    "rank": 5,
    "n_blocks": 2,
    "initial_step": 5e-3,
    "loc_coef": 0.6,
    "reg_coef": 1e-2,
    "decay": 0.8,
    "depth": 2,
    "meta_lr": 1e-3,
    "max_grad_norm": 0.5,
    "step_form": "log",
}


class MeasuredReference(ReferenceRLEdit):
    """The reference implementation, noting the worst condition number of K Kᵀ + λI it meets."""

    condition = 1.0

    def predict(self, batch: EditBatch) -> dict[str, ReferenceAction]:
        """Predict, and measure each module's system."""
        actions = super().predict(batch)
        for action in actions.values():
            gram = action.keys @ action.keys.T
            ridge = self.parameters[action.shape]["log_ridge"][action.index].exp().detach()
            system = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
            self.condition = max(self.condition, float(torch.linalg.cond(system)))
        return actions


@dataclass(eq=False)
class Pair:
    """One fast editor and one reference implementation that start equal."""

    fast: HypernetworkEditor
    book: MeasuredReference
    clipped: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def tolerance(self) -> float:
        """Agreement owed in float64: max(1e-9, 50 ε cond(K Kᵀ + λI)), and never worse than 1e-6."""
        return min(1e-6, max(1e-9, 50 * torch.finfo(torch.float64).eps * self.book.condition))

    def edit(self, batches: Sequence[EditBatch]) -> Errors:
        """Edit both with a stream; the worst relative error of any module's shift."""
        worst = 0.0
        weights = self.fast.model.weights
        for batch in batches:
            before = {name: weights.read(name).clone() for name in self.fast.model.modules}
            self.fast.edit(batch)
            for name, shift in self.book.edit(batch).items():
                worst = max(worst, relative((weights.read(name) - before[name]).T, shift))
        return {"shift": worst}

    def train(self, batches: Sequence[EditBatch]) -> Errors:
        """One trajectory on both: errors of clipped gradients and of the updated parameters."""
        self.fast.train_step(batches)
        self.book.train_step(batches)
        return self._compare()

    def train_each(self, batches: Sequence[EditBatch]) -> Errors:
        """One optimiser step per batch on both, the training of MALMEN and MEND."""
        self.fast.train_step(batches)
        for batch in batches:
            self.book.train_batch(batch)
        return self._compare()

    def reset(self) -> None:
        """Both models unedited again; moments and networks stay."""
        self.fast.model.weights.restore()
        self.book.reset()

    def _compare(self) -> Errors:
        """Worst relative errors over tensors; a network's steps and ridges count as one.

        The reference implementation's λ-gradient is a sum with cancellation, so where λ is tiny it
        can only be held against the step's, which has the same unit (both are logarithms).
        """
        errors = {"gradient": 0.0, "parameter": 0.0}
        for shape, network in self.fast.networks.items():
            found: dict[str, list[Tensor]] = {}
            expected: dict[str, list[Tensor]] = {}
            for name, parameter in network.named_parameters():
                dense = self.book.parameters[shape][name]
                errors["parameter"] = max(errors["parameter"], relative(parameter, dense))
                if dense.grad is not None:
                    part = "scalars" if parameter.dim() == 1 and "blocks" not in name else name
                    found.setdefault(part, []).append(self.clipped[-1][f"{shape}{name}"])
                    expected.setdefault(part, []).append(dense.grad)
            for part, tensors in found.items():
                error = relative(torch.cat(tensors), torch.cat(expected[part]))
                errors["gradient"] = max(errors["gradient"], error)
        return errors

    def keep_gradients(self) -> None:
        """Note every gradient the fast editor's optimiser is given."""

        def keep(*_: Any) -> None:
            self.clipped.append(
                {
                    f"{shape}{name}": parameter.grad.clone()
                    for shape, network in self.fast.networks.items()
                    for name, parameter in network.named_parameters()
                    if parameter.grad is not None
                }
            )

        self.fast.optimiser.register_step_pre_hook(keep)


def make_pair(
    family: str,
    *,
    editor: str = "rledit",
    model: nn.Module | None = None,
    execution: Execution | None = None,
    ridge: float = 1.0,
    book: dict[str, Any] | None = None,
    fast: dict[str, Any] | None = None,
    **settings: Any,
) -> Pair:
    """Both implementations on copies of one model, with one random start.

    Args:
        family: Family of the tiny model.
        editor: Name of the fast editor.
        model: The model; None: `tiny_model` of the family.
        execution: How the fast editor runs its passes.
        ridge: Factor on every λ of the random start.
        book: Settings of the reference implementation only.
        fast: Settings of the fast editor only.
        settings: Settings of both, over `SMALL`.
    """
    model = model or tiny_model(family)
    modules = two_shapes(model)
    both = SMALL | settings
    cls = EDITORS[editor]
    editable = EditableModel(copy.deepcopy(model), None, modules, execution)
    quick = cls(editable, cls.Config(modules=modules, **both | (fast or {})))
    assert isinstance(quick, HypernetworkEditor)
    _scramble(quick, ridge)
    dense = MeasuredReference(
        copy.deepcopy(model),
        editable.modules,
        ReferenceConfig(**both | (book or {})),
        {shape: network.state_dict() for shape, network in quick.networks.items()},
    )
    pair = Pair(quick, dense)
    pair.keep_gradients()
    return pair


def check(errors: Errors, tolerance: float) -> None:
    """Fail where any error is above the tolerance, naming it."""
    over = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not over, f"off by {over}, tolerance {tolerance:.1e}"


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error."""
    return float((found.detach() - expected.detach()).norm() / expected.detach().norm())


def _scramble(editor: HypernetworkEditor, ridge: float) -> None:
    """Move every hypernetwork parameter away from its start, where most gradients vanish."""
    scales = {"B": 0.05, "bias": 0.2, "scale": 0.2, "shift": 0.1, "step_parameter": 0.3}
    generator = torch.Generator().manual_seed(7)
    for network in editor.networks.values():
        for name, parameter in network.named_parameters():
            scale = scales.get(name.split(".")[-1], 0.5)
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            with torch.no_grad():
                if name == "step_parameter" and editor.conventions.step_form == "raw":
                    parameter.mul_((scale * noise).exp())
                else:
                    parameter.add_(scale * noise)
        with torch.no_grad():
            network.log_ridge.add_(math.log(ridge))
