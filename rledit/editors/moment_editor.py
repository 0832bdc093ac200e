"""Common ground of UltraEdit, MEND, MALMEN and RLEdit: shifts from normalised rows."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from rledit.capture import Captured, Tokens, capture
from rledit.editors.base import Editor, State, prefixed, unprefixed
from rledit.editors.conventions import BatchConventions
from rledit.editors.past_keys import PREFIX, PastKeys
from rledit.lazy_torch import Tensor, torch
from rledit.model import EditableModel
from rledit.moments import RunningMoments
from rledit.shift import LowRankShift, Solution, solve_beside_past, solve_normal_equation
from rledit.tokenization import EditBatch, Order, Phase

Shape = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Proposal:
    """The shifts proposed for a batch.

    Attributes:
        shifts: Module → shift; carries the hypernetwork's graph where gradients are enabled.
        solutions: Shape → the stacked factors the shifts are views of.
        captured: The keys and value gradients they were made from.
    """

    shifts: dict[str, LowRankShift]
    solutions: dict[Shape, Solution]
    captured: Captured

    def squared_norm(self) -> Tensor:
        """Σ over modules of ‖S‖²_F, float64, differentiable."""
        return torch.stack([shift.squared_norm() for shift in self.shifts.values()]).sum()


class MomentEditor(Editor):
    """Captures [K, V], keeps running moments per linear shape, and turns z-scores into shifts."""

    tokens: Tokens = "answer"

    def __init__(self, model: EditableModel, config: Any) -> None:
        super().__init__(model, config)
        self.batch_conventions = self.batch_conventions_of(config)
        self.shapes = model.shapes()
        formula = self.batch_conventions.moments
        self.moments = {
            shape: RunningMoments(sum(shape), formula, model.compute_dtype, model.device)
            for shape in self.shapes
        }

        counted = bool(getattr(config, "past_keys", 0.0))
        modules = [name for names in self.shapes.values() for name in names]
        self.past_keys = PastKeys(model, modules, torch.float64) if counted else None

    @classmethod
    def batch_conventions_of(cls, config: Any) -> BatchConventions:
        """Order, loss groups and moments of a configuration; the papers', unless overridden."""
        return BatchConventions()

    @classmethod
    def batch_problem(cls, config: Any, batch_size: int) -> str | None:
        """Why the configuration's loss groups do not fit a batch."""
        return cls.batch_conventions_of(config).problem(batch_size, cls._group_size_of(config))

    @classmethod
    def _group_size_of(cls, config: Any) -> int:
        """`loss_group` of a configuration; 4 for one that has no such setting."""
        return int(getattr(config, "loss_group", 4))

    @property
    def group_size(self) -> int:
        """Samples per loss group."""
        return self._group_size_of(self.config)

    @property
    def order(self) -> Order:
        """Order of a batch's samples."""
        return self.batch_conventions.order

    @property
    def updates_moments_while_editing(self) -> bool:
        """Whether the stream's own rows enter the moments (lifelong normalisation)."""
        return True

    def normalise(self, shape: Shape, rows: Tensor) -> Tensor:
        """Rows [K, V] of the modules of one shape, (M, n, d_in + d_out), as `solve` takes them."""
        return self.moments[shape].normalise(rows)

    @abstractmethod
    def solve(self, shape: Shape, keys: Tensor, z: Tensor) -> Solution:
        """Shift factors of the M modules of one shape.

        Args:
            shape: (d_in, d_out).
            keys: Raw K, (M, n, d_in).
            z: Normalised [K, V], (M, n, d_in + d_out).
        """

    def warm_up(self) -> None:
        """Do what has to come before the first batch; nothing, unless an editor says otherwise."""

    def solve_incomplete(self, shape: Shape, keys: Tensor, z: Tensor, true_z: Tensor) -> Solution:
        """Shift factors of a batch whose last loss group is not full, in the releases' way.

        Args:
            shape: (d_in, d_out).
            keys: Raw K, (M, n, d_in).
            z: Normalised [K, V] with V zero in the incomplete group: what the batch is edited by.
            true_z: Normalised [K, V] as captured: what a training pass differentiates.
        """
        return self.solve(shape, keys, z)

    def counted(self, keys: Tensor, values: Tensor) -> Tensor | None:
        """(..., n) bool, captured rows that count; None where all do.

        Others enter neither the moments nor a shift.

        Args:
            keys: Raw K, (..., n, d_in).
            values: Raw V, (..., n, d_out).
        """
        return None

    def propose(self, batch: EditBatch, update_moments: bool = True) -> Proposal:
        """The shifts for a batch on the current weights; moments are updated before use.

        Raises:
            ValueError: The batch is smaller than a loss group, and the recipe needs a full one.
        """
        phase = batch.edit
        problem = self.batch_conventions.problem(len(phase), phase.group_size)
        if problem is not None:
            raise ValueError(f"editor {self.name!r}: {problem}")
        captured = capture(self.model, phase, self.tokens)
        if update_moments:
            self._update_moments(captured)
        return self.shift_by(captured, self._zeroed(phase, captured))

    def _zeroed(self, phase: Phase, captured: Captured) -> Tensor | None:
        """(n,) bool, rows whose value gradients are taken as zero; None where there are none."""
        if self.batch_conventions.incomplete_groups == "keep":
            return None
        zeroed = captured.row_group >= phase.n_complete_groups
        return zeroed if bool(zeroed.any()) else None

    def shift_by(self, captured: Captured, zeroed: Tensor | None = None) -> Proposal:
        """The shifts for captured rows, with the moments as they are.

        Args:
            captured: Keys and value gradients of every edited module.
            zeroed: (n,) bool, rows whose value gradients are taken as zero.
        """
        shifts: dict[str, LowRankShift] = {}
        solutions: dict[Shape, Solution] = {}
        for shape, names in self.shapes.items():
            keys = torch.stack([captured.keys[name] for name in names])
            values = torch.stack([captured.values[name] for name in names])
            z = self._clipped(self.normalise(shape, torch.cat([keys, values], dim=-1)))
            counted = self.counted(keys, values)
            # Of a row that does not count, an equation sees k = 0, and with it D = 0.
            solved = keys if counted is None else keys.masked_fill(~counted[..., None], 0.0)
            if zeroed is None:
                solution = self.solve(shape, solved, z)
            else:
                left = values.masked_fill(zeroed.to(values.device)[:, None], 0.0)
                edited = self._clipped(self.normalise(shape, torch.cat([keys, left], dim=-1)))
                solution = self.solve_incomplete(shape, solved, edited, z)
            if counted is not None and solution.left is not None:
                solution = replace(solution, right=solution.right * counted[..., None])
            if self.sphere is not None:
                solution = self.sphere.solution(names, solution)
            solutions[shape] = solution
            for j, name in enumerate(names):
                factor = None if solution.left is None else solution.left[j]
                shifts[name] = LowRankShift(factor, solution.right[j])
        return Proposal({name: shifts[name] for name in self.model.modules}, solutions, captured)

    def _clipped(self, z: Tensor) -> Tensor:
        """Normalised rows, clamped to ±`z_clip` where the configuration has one.

        A network is trained on the rows that it will edit by. Rows are its input, captured without
        a graph, so that the clamp takes no gradient from it.
        """
        bound = float(getattr(self.config, "z_clip", 0.0))
        return z.clamp(-bound, bound) if bound else z

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Propose shifts and merge them."""
        with torch.no_grad():
            proposal = self.propose(batch, self.updates_moments_while_editing)
            cosines = self.merge(proposal)
        solutions = proposal.solutions.values()
        return {
            "edit_loss": proposal.captured.loss,
            "shift_norm": float(proposal.squared_norm().sqrt()),
            "condition": max(float(s.condition.max()) for s in solutions),
            "jitter": max(s.jitter for s in solutions),
            "realised_cosine": min(cosines),
        }

    def solve_equation(
        self, shape: Shape, keys: Tensor, differences: Tensor, ridge: Tensor
    ) -> Solution:
        """Shift factors by the normal equation, beside the keys of earlier batches if they count.

        Args:
            shape: (d_in, d_out).
            keys: Raw K, (M, n, d_in).
            differences: D, (M, n, d_out).
            ridge: λ, (M,).
        """
        past = None if self.past_keys is None else self.past_keys.of(shape)
        if past is None:
            return solve_normal_equation(keys, differences, ridge, self.named(shape))
        weight = self.config.past_keys
        return solve_beside_past(keys, differences, ridge, past, weight, self.named(shape))

    def named(self, shape: Shape) -> str:
        """The linear layers of a shape, as errors about their systems name them."""
        return ", ".join(self.shapes[shape])

    def merge(self, proposal: Proposal) -> list[float]:
        """Add the shifts to the weights; returns each module's realised/intended cosine."""
        cosines = self.model.weights.add_all(proposal.shifts)
        if self.past_keys is not None:
            self.past_keys.add(proposal.captured.keys)
        return cosines

    def state_dict(self) -> State:
        """The moments of every shape, and the keys of the stream so far where they count."""
        state: State = {}
        for (d_in, d_out), moments in self.moments.items():
            state |= prefixed(f"moments.{d_in}x{d_out}.", moments.state_dict())
        if self.past_keys is not None and not self.past_keys.empty:
            state |= self.past_keys.state_dict()
        return state

    def load_state_dict(self, state: State) -> None:
        """Put saved moments back."""
        self.load_moments(state)

    def load_moments(self, state: State) -> None:
        """Put what a saved state says of the rows so far back, and nothing else."""
        if self.past_keys is not None:
            if any(k.startswith("past_keys.") for k in state):
                raise ValueError(
                    "the saved state has the keys of earlier batches as an earlier version wrote "
                    "them, which is not read; delete it, and the stream begins anew"
                )
            past = {k: v for k, v in state.items() if k.startswith(PREFIX)}
            # Before the first batch, and of a network in the cache, there are none.
            self.past_keys.load_state_dict(past) if past else self.past_keys.reset()
        for (d_in, d_out), moments in self.moments.items():
            part = unprefixed(f"moments.{d_in}x{d_out}.", state)
            if not part:
                raise ValueError(
                    f"the saved state has no moments for linear layers of shape {d_in}x{d_out}; "
                    "it belongs to another model or another choice of modules"
                )
            moments.load_state_dict(part)

    def _update_moments(self, captured: Captured) -> None:
        """Merge this batch's rows, one micro-batch per (loss group, module) as the release does.

        The exact formula does not depend on the chunking; the official one does.
        """
        for shape, names in self.shapes.items():
            moments = self.moments[shape]
            rows, groups = zip(*(self._counted_rows(captured, n) for n in names), strict=True)
            if self.batch_conventions.moments == "exact":
                moments.update(torch.cat(rows))
                continue
            for group in range(int(captured.row_group.max()) + 1):
                for module_rows, row_group in zip(rows, groups, strict=True):
                    moments.update(module_rows[row_group == group])

    def _counted_rows(self, captured: Captured, name: str) -> tuple[Tensor, Tensor]:
        """The rows [K, V] of a module that count, and their loss groups."""
        keys, values = captured.keys[name], captured.values[name]
        rows = torch.cat([keys, values], dim=-1)
        counted = self.counted(keys, values)
        if counted is None:
            return rows, captured.row_group
        return rows[counted], captured.row_group[counted.to(captured.row_group.device)]
