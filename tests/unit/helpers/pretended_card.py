"""A pretended card on the CPU: refuses what a card refuses, and counts what the host waits for.

Its tensors say that they lie on `meta`, a device that every build of PyTorch knows, and have
numbers all the same. As on a card, an operation on tensors of two devices is refused, unless one
of them is a single number or says which places to take; and where something is copied from one
memory to the other, or the host asks for a number, the host waits.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

CARD = torch.device("meta")
_COPIES = ("aten::copy_", "aten::_to_copy")
_PLACES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
# A card is asked for the size of what they give, or for their answer.
_ASKING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")


class OnCard(Tensor):
    """A tensor of the card; its numbers lie on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCard:
        found: OnCard = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CARD,
        )
        found.inner = inner
        return found

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """As `Tensor.data`, which would leave the numbers behind when it is set."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, OnCard)
        self.inner = value.inner

    def tolist(self) -> Any:
        """As `Tensor.tolist`, which refuses tensors of other classes."""
        return self.cpu().tolist()

    def new_tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Tensor.new_tensor`, which would make one without numbers."""
        return self.inner.new_tensor(*args, **kwargs).to(CARD)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnCard({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: the pretended card is there in its context only")


class PretendedCard(TorchDispatchMode):
    """Inside the context there is a second device, `CARD`.

    Attributes:
        waits: How often the host waited, by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._tensor = torch.tensor

    def __enter__(self) -> Self:
        def tensor(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            return self._tensor(*args, **kwargs).to(device or "cpu")

        # Of numbers that are not on any device yet it is told nothing.
        torch.tensor = tensor
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        torch.tensor = self._tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in tensors if isinstance(t, OnCard)]
        here = [t for t in tensors if not isinstance(t, OnCard)]
        assert all(t.device != CARD for t in here), f"{name}: a tensor of the card without numbers"
        asked = kwargs.get("device")
        on_card = bool(there) if asked is None else torch.device(asked).type == CARD.type
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        if name in _COPIES:
            across = (bool(there) and (bool(here) or not on_card)) or (bool(here) and on_card)
            self._count(name, across)
        elif there:
            _require_one_device(name, args, here)
            self._count(name, name in _ASKING)
        own = {id(t.inner): t for t in there}
        args, kwargs = tree_map_only(OnCard, lambda t: t.inner, (args, kwargs))
        found = func(*args, **kwargs)
        if name == "aten::copy_":
            return own.get(id(found), found)
        if not on_card:
            return found
        return tree_map_only(Tensor, lambda t: own[id(t)] if id(t) in own else OnCard(t), found)

    def _count(self, name: str, waited: bool) -> None:
        if waited:
            self.waits[name] += 1


def _require_one_device(name: str, args: Any, here: list[Tensor]) -> None:
    """Refuse what a card refuses, see the module."""
    if name in _PLACES and isinstance(args[0], OnCard):
        here = [t for t in here if all(t is not place for place in args[1])]
    if any(t.dim() > 0 for t in here):
        shapes = [tuple(t.shape) for t in here]
        raise RuntimeError(
            f"expected all tensors to be on the same device, but {name} has some of {shapes} on "
            "the CPU beside one of the card"
        )


def on_card(model: torch.nn.Module) -> torch.nn.Module:
    """Move a model to the card; inside the context."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = OnCard(parameter.detach().clone())
                module._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnCard(buffer.detach().clone())
    return model
