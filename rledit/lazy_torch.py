"""PyTorch, imported when something of it is first used.

To import PyTorch takes seconds of CPU, and a plan needs none of it: it asks editors' classes what
they need and their settings what they say. Modules that a plan reads therefore take PyTorch from
here, where others import it by itself:

    from rledit.lazy_torch import F, Tensor, nn, torch

Type checkers see PyTorch. `Tensor` is for annotations and aliases of types alone; ask
`isinstance(x, torch.Tensor)`. What a module evaluates while it is imported imports PyTorch then: a
base class, a default, a constant. Classes of modules and of autograd functions therefore lie in
files of their own, which are imported by the functions that use them.
"""

from __future__ import annotations

from contextlib import ContextDecorator
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
    from torch import Tensor as Tensor
    from torch import nn as nn
else:

    class _Lazy:
        """A module that is imported when one of its attributes is asked for."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            if attribute == "_module":
                self._module = import_module(self._name)
                return self._module
            return getattr(self._module, attribute)  # not kept: what is patched is seen

        def __reduce__(self) -> Any:
            return _Lazy, (self._name,)

    class _NoGrad(ContextDecorator):
        """`torch.no_grad()`; as a decorator it imports nothing before the function is called."""

        def __enter__(self) -> None:
            self._context = import_module("torch").no_grad()
            self._context.__enter__()

        def __exit__(self, *error: Any) -> None:
            self._context.__exit__(*error)

        def _recreate_cm(self) -> _NoGrad:
            return _NoGrad()  # a call of its own, as a function may call itself

    class _LazyTorch(_Lazy):
        no_grad = _NoGrad

        def __reduce__(self) -> Any:
            return _LazyTorch, (self._name,)

    torch = _LazyTorch("torch")
    nn = _Lazy("torch.nn")
    F = _Lazy("torch.nn.functional")
    Tensor = "Tensor"
