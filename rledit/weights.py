"""The edited matrices of a model: their originals, their fp32 masters, and every write to them.

A 1e-6-scale edit added to a bf16 weight is lost to rounding, so low-precision matrices keep an
fp32 master: edits accumulate there and the rounded sum is written to the model. The original is
kept too, so that restoring is bit-exact and the unedited model can be looked at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

from rledit.families import is_transposed
from rledit.lazy_torch import Tensor, nn, torch


class WeightAccess(Protocol):
    """How a weight is read and written; a sharded model supplies its own.

    Attributes:
        in_step: Whether every call, and every pass of the model, is one that all ranks have to
            make together, in the same order.
    """

    in_step: bool

    def read(self, parameter: nn.Parameter) -> Tensor:
        """The whole matrix (d_out x d_in), detached."""
        ...

    def write(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Replace the whole matrix, rounding to the parameter's type."""
        ...

    def showing(self, parameter: nn.Parameter, value: Tensor) -> AbstractContextManager[None]:
        """Show another matrix of the parameter's type for the length of a context."""
        ...


class LocalAccess:
    """Weights that lie whole in this process."""

    in_step = False

    def read(self, parameter: nn.Parameter) -> Tensor:
        """The parameter's own storage, detached."""
        return parameter.detach()

    def write(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Copy `value` in place, rounding to the parameter's type."""
        with torch.no_grad():
            parameter.copy_(value)

    @contextmanager
    def showing(self, parameter: nn.Parameter, value: Tensor) -> Iterator[None]:
        """Point the parameter at another tensor for a while: nothing is copied."""
        current = parameter.data
        parameter.data = value
        try:
            yield
        finally:
            parameter.data = current


class Addition(Protocol):
    """Something that can add itself to a (d_out x d_in) matrix in place."""

    def add_to(self, weight: Tensor) -> None:
        """Add in place."""
        ...

    def dense(self) -> Tensor:
        """The addition as (d_in x d_out), the transpose of the weight's layout."""
        ...


class Switchable(Protocol):
    """What an editor keeps beside the matrices and changes passes by, see `rledit.overlay`."""

    def off(self) -> AbstractContextManager[None]:
        """Change no pass inside the context."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...


class EditedWeights:
    """The edited matrices by module name.

    Matrices are (d_out x d_in) here, also those that a model keeps the other way round.

    Attributes:
        overlay: A memory beside them, which belongs to what is edited; None where there is none.

    Args:
        model: The language model; its parameters should be frozen.
        modules: Names of the target modules.
        access: How weights are read and written (default: in this process).
    """

    def __init__(
        self, model: nn.Module, modules: Sequence[str], access: WeightAccess | None = None
    ) -> None:
        self.names = tuple(modules)
        self._access: WeightAccess = access or LocalAccess()
        self._linears = {name: model.get_submodule(name) for name in self.names}
        self._parameters = {name: _weight(model, name) for name in self.names}
        self._transposed = {name for name in self.names if is_transposed(model.get_submodule(name))}
        self._original = {name: self._read(name).clone() for name in self.names}
        self._masters: dict[str, Tensor] = {}
        self.overlay: Switchable | None = None

    def original(self, name: str) -> Tensor:
        """The unedited matrix (d_out x d_in) in the model's own precision. Do not modify."""
        return self._original[name]

    def read(self, name: str) -> Tensor:
        """The current matrix (d_out x d_in) at full precision. Do not modify."""
        if name in self._masters:
            return self._masters[name]
        return self._read(name)

    def parameter(self, name: str) -> nn.Parameter:
        """The model's parameter, for editors that differentiate with respect to it.

        It lies as the model keeps it; `upright` turns what is of its shape.
        """
        return self._parameters[name]

    def linear(self, name: str) -> nn.Module:
        """The linear that a matrix belongs to."""
        return self._linears[name]

    def gradient(self, name: str, keys: Tensor, values: Tensor) -> Tensor:
        """(d_out x d_in) gradient of a matrix, from its linear's keys and value gradients."""
        return values.T @ keys

    def upright(self, name: str, value: Tensor) -> Tensor:
        """A tensor in the layout of the parameter as (d_out x d_in), and the other way round."""
        return value.T if name in self._transposed else value

    def add(self, name: str, shift: Addition) -> float:
        """Add a shift to a matrix: exactly in the master, rounded in the model.

        Returns:
            Cosine between the change the model's own precision realised and the intended one;
            1 where the model is precise enough to need no master.
        """
        return self.add_all({name: shift})[0]

    @torch.no_grad()
    def add_all(self, shifts: Mapping[str, Addition]) -> list[float]:
        """As `add`, for many matrices: their cosines, for which the host waits once."""
        products = {name: self._added(name, shift) for name, shift in shifts.items()}
        rounded = {name: found for name, found in products.items() if found is not None}
        cosines = dict.fromkeys(shifts, 1.0)
        if rounded:
            found = torch.stack(list(rounded.values())).tolist()
            for name, (scale, product) in zip(rounded, found, strict=True):
                cosines[name] = product / scale if scale > 0 else 0.0
        return list(cosines.values())

    def _added(self, name: str, shift: Addition) -> Tensor | None:
        """Add a shift to a matrix.

        Returns:
            (2,) product of the norms of realised and intended change, and their inner product, on
            the matrix's device; None where there is no master.
        """
        master = self._master(name)
        shift.add_to(master)
        if name not in self._masters:
            self._write(name, master)
            return None
        before = self._read(name).float()
        self._write(name, master)
        # In place: these are whole matrices, and for large models there is room for few of them.
        realised = self._read(name).float().sub_(before)
        intended = shift.dense().T.float()
        norms = realised.norm() * intended.norm()
        return torch.stack([norms, realised.mul_(intended).sum()])

    def set(self, name: str, value: Tensor) -> None:
        """Replace a matrix (d_out x d_in)."""
        master = self._master(name)
        master.copy_(value)
        self._write(name, master)

    def restore(self) -> None:
        """Return to the unedited model, bit by bit; a memory beside the matrices is emptied."""
        if self.overlay is not None:
            self.overlay.clear()
        self._masters.clear()
        for name in self.names:
            self._write(name, self._original[name])

    @contextmanager
    def unedited(self, copied: bool = False) -> Iterator[None]:
        """Look at the unedited model inside the context; the edits return afterwards.

        Args:
            copied: Look at copies of its matrices, for whoever may write to the model inside.
        """
        with ExitStack() as stack:
            for name, parameter in self._parameters.items():
                original = self._original[name]
                value = self.upright(name, original.clone() if copied else original)
                stack.enter_context(self._access.showing(parameter, value))
            stack.enter_context(self.without_overlay())
            yield

    def without_overlay(self) -> AbstractContextManager[None]:
        """Leave a memory beside the matrices out inside the context."""
        return nullcontext() if self.overlay is None else self.overlay.off()

    def delta_norm(self, name: str) -> float:
        """Frobenius norm of (current - original)."""
        # In double precision throughout, a CPU would copy the whole matrix.
        change = self.read(name) - self._original[name]
        single = torch.promote_types(change.dtype, torch.float32)
        rows = torch.linalg.vector_norm(change, dim=-1, dtype=single)
        return float(torch.linalg.vector_norm(rows, dtype=torch.float64))

    def state_dict(self) -> dict[str, Tensor]:
        """Full-precision copies of the edited matrices: what a resumed run needs of the model."""
        return {name: self.read(name).clone() for name in self.names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put saved matrices back.

        Raises:
            ValueError: The state is of other modules.
        """
        if set(state) != set(self.names):
            raise ValueError(
                f"edited weights of {sorted(state)} cannot be loaded into {sorted(self.names)}"
            )
        for name, value in state.items():
            self.set(name, value)

    def _read(self, name: str) -> Tensor:
        return self.upright(name, self._access.read(self._parameters[name]))

    def _write(self, name: str, value: Tensor) -> None:
        self._access.write(self._parameters[name], self.upright(name, value))

    def _master(self, name: str) -> Tensor:
        """The tensor edits accumulate in: the current matrix where it is precise enough."""
        if name in self._masters:
            return self._masters[name]
        current = self._read(name)
        if current.dtype not in (torch.bfloat16, torch.float16):
            return current
        self._masters[name] = current.float()
        return self._masters[name]


def _weight(model: nn.Module, name: str) -> nn.Parameter:
    weight = model.get_submodule(name).weight
    if not isinstance(weight, nn.Parameter):
        raise ValueError(f"module {name!r} has no weight parameter")
    return weight
