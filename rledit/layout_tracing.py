"""Trace of a model without weights: what each layer takes and returns, for finding its layout.

On the meta device operations give shapes alone, so a model of any size runs in a second or so.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rledit.families import UneditableError

_UNCHANGED = ("view", "_unsafe_view", "reshape", "_to_copy", "clone", "dropout", "native_dropout")


class Trace:
    """One run of a model without numbers, and what it shows of its layers.

    Attributes:
        norm: Name of the module through which the MLP's output joins the stream.
        scale: Factor by which it joins.
        activated: The matrix whose output the activation is applied to.
        attention_returns: Length of the tuple that the attention returns; None: a tensor.
        layer_returns_tuple: Whether a layer returns a tuple.
        problem: What was seen that is not known here; None where nothing was.

    Args:
        model: The model, on the meta device.
        layers: Its decoder layers.
        attention: Name of the attention inside a layer.
        mlp: Name of the MLP.
        into: The MLP's matrices that read the residual stream.
    """

    def __init__(
        self, model: nn.Module, layers: nn.ModuleList, attention: str, mlp: str, into: Sequence[str]
    ) -> None:
        self._model: Any = model
        self._layers = layers
        config: Any = model.config
        self._hidden = int(config.get_text_config().hidden_size)
        self._attention, self._mlp, self._into = attention, mlp, into
        self.norm: str | None = None
        self.scale = 1.0
        self.activated: str | None = None
        self.attention_returns: int | None = None
        self.layer_returns_tuple = False
        self._last: Tensor | None = None
        self._final: str | None = None
        self._calls = [0] * len(layers)
        self._headed = False
        self.problem: str | None = None

    def run(self) -> None:
        """Run, and judge what was seen."""
        hidden = self._hidden
        ids = torch.zeros(1, 3, dtype=torch.long, device="meta")
        embedded = torch.zeros(1, 3, hidden, device="meta", dtype=self._dtype)
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad(), self._hooked():
                self._model(input_ids=ids, use_cache=False)
            with torch.no_grad(), _Deciding():
                self._model(inputs_embeds=embedded, use_cache=False)
        except UneditableError:
            raise
        except Exception as error:
            raise UneditableError(
                f"it does not run on tokens or hidden states alone ({type(error).__name__}: "
                f"{str(error)[:200]}), which passes that begin in the middle of the stack need"
            ) from None
        finally:
            self._model.train(was_training)
        if set(self._calls) != {1}:
            raise UneditableError("its layers do not run once each, one after the other")
        if not self._headed:
            raise UneditableError("its output embedding is not applied to the hidden states as one")
        if self.problem is not None:
            raise UneditableError(self.problem)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._model.parameters()).dtype

    def final_norm(self) -> str:
        """Path of the normalisation before the output embedding."""
        if self._final is None:
            raise UneditableError("no normalisation stands between its layers and its head")
        return self._final

    def _hooked(self) -> ExitStack:
        stack = ExitStack()
        layer = self._layers[0]
        for i, each in enumerate(self._layers):
            stack.callback(each.register_forward_hook(self._counted(i), with_kwargs=True).remove)
        attention = layer.get_submodule(self._attention)
        stack.callback(attention.register_forward_hook(self._attended).remove)
        for path in self._into:
            hook = self._activation_of(path, stack)
            stack.callback(layer.get_submodule(path).register_forward_hook(hook).remove)
        stack.enter_context(_Joining(self, layer, self._mlp))
        head = self._model.get_output_embeddings()
        if head is None:
            raise UneditableError("it has no output embedding")

        def headed(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._headed = bool(args) and args[0].dim() == 3

        stack.callback(head.register_forward_pre_hook(headed).remove)
        for name, module in self._model.named_modules():
            if "norm" in type(module).__name__.lower() and _outside(self._layers, module):
                stack.callback(module.register_forward_pre_hook(self._norm_at(name)).remove)
        return stack

    def _counted(self, i: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], __: Any, output: Any) -> None:
            self._calls[i] += 1
            shape = args[0].shape if args else ()
            if tuple(shape) != (1, 3, self._hidden):
                raise UneditableError(
                    "a layer does not get the hidden states of one residual stream alone, as its "
                    f"first argument (1, 3, {self._hidden}); it gets {tuple(shape) or 'none'}"
                )
            self.layer_returns_tuple = isinstance(output, tuple)
            self._last = output[0] if isinstance(output, tuple) else output

        return hook

    def _attended(self, _: nn.Module, __: Any, output: Any) -> None:
        self.attention_returns = len(output) if isinstance(output, tuple) else None

    def _activation_of(self, path: str, stack: ExitStack) -> Any:
        """Note which matrix's output a module without parameters, the activation, is given."""
        outputs: list[Tensor] = []
        block = self._layers[0].get_submodule(self._mlp)

        def given(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and outputs and args[0] is outputs[-1]:
                self.activated = path

        for module in block.modules():
            if not list(module.children()) and not list(module.parameters()):
                stack.callback(module.register_forward_pre_hook(given).remove)

        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            outputs.append(output)

        return keep

    def _norm_at(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and self._last is not None and args[0] is self._last:
                self._final = name

        return hook


def _outside(layers: nn.ModuleList, module: nn.Module) -> bool:
    return all(module is not inner for inner in layers.modules())


class _Deciding(TorchDispatchMode):
    """Lets a run without numbers go on where it asks for one: whether a text is one, unpadded."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return True
        return func(*args, **(kwargs or {}))


class _Joining(_Deciding):
    """Follows the output of the first layer's MLP to the layer's output."""

    def __init__(self, trace: Trace, layer: nn.Module, mlp: str) -> None:
        super().__init__()
        self._trace = trace
        self._at: Tensor | None = None
        self._inside: str | None = None
        self._handles = [layer.get_submodule(mlp).register_forward_hook(self._begin)]
        for name, child in layer.named_children():
            if name != mlp and list(child.parameters()):
                self._handles += [
                    child.register_forward_pre_hook(self._enter(name)),
                    child.register_forward_hook(self._leave(name)),
                ]
        self._handles.append(layer.register_forward_hook(self._end))

    def __exit__(self, *error: Any) -> Any:
        for handle in self._handles:
            handle.remove()
        return super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self._at is None or self._inside is not None or not any(a is self._at for a in args):
            return result
        name = func.overloadpacket.__name__
        first = result[0] if isinstance(result, tuple) else result
        if name in ("add", "add_") or name in _UNCHANGED:
            self._at = first
        elif name in ("mul", "mul_", "div", "div_"):
            factor = _number(next(a for a in args if a is not self._at))
            if factor is None:
                self._stop("it is multiplied by a tensor")
            else:
                self._trace.scale *= 1 / factor if name.startswith("div") else factor
                self._at = first
        else:
            self._stop(f"{name} is applied to it")
        return result

    def _begin(self, _: nn.Module, __: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            self._trace.problem = "its MLP returns more than its output"
            return
        self._at = output

    def _enter(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if self._at is not None and args and args[0] is self._at:
                self._inside = name

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if self._inside != name:
                return
            self._inside = None
            if self._trace.norm is not None or not isinstance(output, Tensor):
                self._stop(f"it goes through {name}")
                return
            self._trace.norm = name
            self._at = output

        return hook

    def _end(self, _: nn.Module, __: Any, output: Any) -> None:
        whole = output[0] if isinstance(output, tuple) else output
        if self._at is not None and whole is not self._at:
            self._stop("it is not the last thing that is added")
        self._at = None

    def _stop(self, why: str) -> None:
        self._trace.problem = (
            f"how its MLP's output joins the residual stream is not known here: {why}"
        )
        self._at = None


def _number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Tensor) and value.dim() == 0 and value.device.type != "meta":
        return float(value)
    return None
