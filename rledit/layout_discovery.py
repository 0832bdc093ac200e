"""Discovery of a model's layout from its classes, for types that `FAMILIES` does not list.

The classes of the model are built on the meta device and run once without numbers. Accepted is one
unambiguous layout: one stack of decoder layers, each of one attention block and one MLP of plain
matrices, whose output joins the residual stream as it is, scaled, or through a norm. Everything
else is refused with the reason.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rledit.families import Family, UneditableError, linear_shape
from rledit.layout_tracing import Trace

_EXPERTS = re.compile(r"sparsemoe|moe(layer|block)?$|experts?$|router", re.IGNORECASE)
_RECURRENT = re.compile(
    r"mamba|deltanet|deltaattention|linear_attn|recurrent|rwkv|xlstm|mlstm|short_?conv|lightning",
    re.IGNORECASE,
)
# Linear layers that compute x Wᵀ + b under another name than nn.Linear's.
_LIKE_LINEAR = frozenset({"FalconLinear"})


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
    seen = Trace(model, layers, attention, mlp, [f"{mlp}.{name}" for name in into])
    seen.run()
    return Family(
        name=str(config.model_type),
        layers=path,
        target_modules={
            **_named(seen, layer.get_submodule(mlp), mlp, into, out),
            "down": f"{mlp}.{out}",
        },
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
    whole: Any = model.config
    config = whole.get_text_config()
    depth = getattr(config, "num_hidden_layers", None)
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            found[name] = module
    if config is not whole:
        raise UneditableError(
            f"it is a multimodal model ({type(model).__name__}), and edits are written into its "
            "text model alone; open that: `rledit edit FOLDER` and a grid's `checkpoint` do so by "
            "themselves, pipeline.inputs.model_loading.load_model(folder, 'auto') in Python"
        )
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
        kind = type(module)
        plain = kind in (nn.Linear, Conv1D) or (
            kind.__name__ in _LIKE_LINEAR and isinstance(module, nn.Linear)
        )
        if not plain:
            raise UneditableError(
                f"its MLP ({type(mlp).__name__}) has linear layers of another kind: {name} is a "
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


def _named(seen: Trace, mlp: nn.Module, path: str, into: Sequence[str], out: str) -> dict[str, str]:
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
