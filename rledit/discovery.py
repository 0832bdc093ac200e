"""A family's description found from a model itself: for types that `FAMILIES` does not list.

The classes of the model are built on the meta device and run once without numbers. Taken is what
leaves no doubt: one stack of decoder layers, each of one attention block and one MLP of plain
matrices, whose output joins the residual stream as it is, scaled, or through a norm. Everything
else is refused with the reason.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from rledit.families import Family, UneditableError, linear_shape

_EXPERTS = re.compile(r"sparsemoe|moe(layer|block)?$|experts?$|router", re.IGNORECASE)
_RECURRENT = re.compile(
    r"mamba|deltanet|deltaattention|linear_attn|recurrent|rwkv|xlstm|mlstm|short_?conv|lightning",
    re.IGNORECASE,
)
# Linears that compute x Wᵀ + b under another name than nn.Linear's.
_LIKE_LINEAR = frozenset({"FalconLinear"})
_UNCHANGED = ("view", "_unsafe_view", "reshape", "_to_copy", "clone", "dropout", "native_dropout")


def described(model: nn.Module) -> Family:
    """The description of a model on the meta device.

    Raises:
        UneditableError: Its layers are not of a kind that can be edited; says why.
    """
    config: Any = model.config
    layers, path = _layers(model)
    _refuse_experts(layers)
    _refuse_recurrent(layers)
    layer = layers[0]
    attention, mlp = _blocks(layer)
    _refuse_unequal(layers, attention, mlp)
    into, out = _matrices(layer.get_submodule(mlp), int(config.get_text_config().hidden_size))
    seen = _Trace(model, layers, attention, mlp, [f"{mlp}.{name}" for name in into])
    seen.run()
    return Family(
        name=str(config.model_type),
        layers=path,
        linears={**_named(seen, layer.get_submodule(mlp), mlp, into, out), "down": f"{mlp}.{out}"},
        attention=attention,
        mlp=mlp,
        final_norm=seen.final_norm(),
        norm_after_mlp=seen.norm,
        residual_scale=seen.scale,
        attention_returns=seen.attention_returns,
        layer_returns_tuple=seen.layer_returns_tuple,
        described=True,
    )


def _layers(model: nn.Module) -> tuple[nn.ModuleList, str]:
    """The stack of decoder layers and its path."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr]
    depth = getattr(config, "num_hidden_layers", None)
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found[name] = module
    fitting = {n: m for n, m in found.items() if len(m) == depth}
    if len(fitting) != 1 or len(found) != 1:
        raise UneditableError(
            f"it has {len(found)} stacks of layers ({', '.join(found) or 'none'}) where one stack "
            f"of {depth} decoder layers is expected"
        )
    ((path, layers),) = fitting.items()
    return layers, path


def _refuse_experts(layers: nn.ModuleList) -> None:
    with_experts = [
        i for i, layer in enumerate(layers)
        if any(_EXPERTS.search(type(m).__name__) or _EXPERTS.search(name.rpartition(".")[2])
               for name, m in layer.named_modules() if name)
    ]  # fmt: skip
    if with_experts:
        raise UneditableError(
            f"it is a mixture of experts (in {len(with_experts)} of {len(layers)} layers): a "
            "router sends each token to a few of many MLPs, so there is no one matrix per layer "
            "that a fact is written into; take a dense model"
        )


def _refuse_recurrent(layers: nn.ModuleList) -> None:
    kinds = {
        type(m).__name__ for layer in layers for name, m in layer.named_children()
        if _RECURRENT.search(type(m).__name__) or _RECURRENT.search(name)
    } | {type(layer).__name__ for layer in layers if _attentions(layer) == []}  # fmt: skip
    if kinds:
        raise UneditableError(
            f"it is a state-space, recurrent or hybrid model ({', '.join(sorted(kinds))}): a state "
            "runs along the text beside or instead of attention, and passes that begin in the "
            "middle of a text or of the stack would lose it; take a model all of whose layers "
            "attend"
        )


def _attentions(layer: nn.Module) -> list[str]:
    return [
        name for name, child in layer.named_children()
        if "attention_mask" in inspect.signature(child.forward).parameters
    ]  # fmt: skip


def _blocks(layer: nn.Module) -> tuple[str, str]:
    """Names of a decoder layer's attention and MLP."""
    kind = type(layer).__name__
    attentions = _attentions(layer)
    if len(attentions) != 1:
        raise UneditableError(
            f"its layer ({kind}) has {len(attentions)} attention blocks "
            f"({', '.join(attentions)}) where one is expected"
        )
    others = [
        name for name, child in layer.named_children()
        if name not in attentions and any(map(_is_matrix, child.modules()))
    ]  # fmt: skip
    if loose := [name for name in others if _is_matrix(layer.get_submodule(name))]:
        raise UneditableError(
            f"the MLP of its layer ({kind}) is no block of its own: {', '.join(loose)} stand in "
            "the layer itself, and passes that begin behind the attention swap whole blocks"
        )
    if len(others) != 1:
        raise UneditableError(
            f"its layer ({kind}) has {len(others)} blocks of matrices beside the attention "
            f"({', '.join(others) or 'none'}) where one MLP is expected"
        )
    return attentions[0], others[0]


def _is_matrix(module: nn.Module) -> bool:
    """Whether a module holds a matrix itself, of whatever class; embeddings and norms do not."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1 and not isinstance(module, nn.Embedding)


def _refuse_unequal(layers: nn.ModuleList, attention: str, mlp: str) -> None:
    first = [name for name, m in layers[0].get_submodule(mlp).named_modules() if _is_matrix(m)]
    for i, layer in enumerate(layers):
        children = dict(layer.named_children())
        same = attention in children and mlp in children
        if same and first == [n for n, m in children[mlp].named_modules() if _is_matrix(m)]:
            continue
        raise UneditableError(
            f"its layers are not all alike: layer 0 has {attention!r} and {mlp!r} with "
            f"{', '.join(first)}, layer {i} has not"
        )


def _matrices(mlp: nn.Module, hidden: int) -> tuple[list[str], str]:
    """Names of the matrices of an MLP that read the residual stream, and of the one that writes."""
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in mlp.named_modules():
        if not _is_matrix(module):
            continue
        plain = type(module) in (nn.Linear, Conv1D) or type(module).__name__ in _LIKE_LINEAR
        if not plain:
            raise UneditableError(
                f"its MLP ({type(mlp).__name__}) has linears of another kind: {name} is a "
                f"{type(module).__name__}, and edits are written into plain matrices"
            )
        shapes[name] = linear_shape(module)
    for out, (inner, width) in shapes.items():
        into = [name for name in shapes if name != out]
        # A matrix in reads the stream and is as wide as the one out, or twice where gate and up
        # are fused.
        widths = [shapes[name][1] for name in into]
        fits = widths in ([inner], [inner, inner], [2 * inner])
        if width == hidden and fits and all(shapes[name][0] == hidden for name in into):
            # Of square matrices the last is the one that writes.
            if inner == hidden and out != list(shapes)[-1]:
                continue
            return into, out
    listed = ", ".join(f"{name} {d_in}→{d_out}" for name, (d_in, d_out) in shapes.items())
    raise UneditableError(
        f"the shapes of its MLP ({type(mlp).__name__}: {listed}) are not those of one matrix into "
        f"the residual stream (width {hidden}) and one or two out of it"
    )


def _named(
    seen: _Trace, mlp: nn.Module, path: str, into: Sequence[str], out: str
) -> dict[str, str]:
    """Short names of the matrices that read the residual stream."""
    if len(into) == 2:
        gate = seen.activated
        if gate is None:
            raise UneditableError(
                f"which of {', '.join(into)} in its MLP ({type(mlp).__name__}) is the gate cannot "
                "be told: the activation is applied to neither as it is"
            )
        (up,) = (name for name in into if f"{path}.{name}" != gate)
        return {"gate": gate, "up": f"{path}.{up}"}
    inner = linear_shape(mlp.get_submodule(out))[0]
    fused = linear_shape(mlp.get_submodule(into[0]))[1] == 2 * inner
    return {"gate_up" if fused else "up": f"{path}.{into[0]}"}


class _Trace:
    """One run of a model without numbers, and what it shows of its layers.

    Attributes:
        norm: Name of the module through which the MLP's output joins the stream.
        scale: Factor by which it joins.
        activated: The matrix whose output the activation is applied to.
    """

    def __init__(
        self, model: nn.Module, layers: nn.ModuleList, attention: str, mlp: str, into: Sequence[str]
    ) -> None:
        self._model, self._layers = model, layers
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
        self._problem: str | None = None

    def run(self) -> None:
        """Run, and judge what was seen."""
        hidden = self._model.config.get_text_config().hidden_size  # type: ignore[union-attr]
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
        if self._problem is not None:
            raise UneditableError(self._problem)

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
        head = self._model.get_output_embeddings()  # type: ignore[operator]
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
            hidden = self._model.config.get_text_config().hidden_size  # type: ignore[union-attr]
            if tuple(shape) != (1, 3, hidden):
                raise UneditableError(
                    "a layer does not get the hidden states of one residual stream alone, as its "
                    f"first argument (1, 3, {hidden}); it gets {tuple(shape) or 'none'}"
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

    def __init__(self, trace: _Trace, layer: nn.Module, mlp: str) -> None:
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
            self._trace._problem = "its MLP returns more than its output"
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
        self._trace._problem = (
            f"how its MLP's output joins the residual stream is not known here: {why}"
        )
        self._at = None


def _number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Tensor) and value.dim() == 0 and value.device.type != "meta":
        return float(value)
    return None
