"""Model families: where layers and MLP modules live, and how prompts begin.

Everything else in the package treats a model as a stack of decoder layers whose MLP linear layers
are plain matrices. The families of the presets are entries of `FAMILIES`; what those entries say of
the others is found from the model itself (`rledit.layout_discovery`), or the model is refused with
its reason.

Plans read the table without a model: what needs torch or transformers imports it where it is used.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rledit.errors import UserError

if TYPE_CHECKING:
    from torch import nn


class UneditableError(UserError, ValueError):
    """A model whose architecture cannot be edited, with the architecture's own reason."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture family of Hugging Face causal language models.

    Attributes:
        name: `model_type` of the Hugging Face configuration.
        layers: Path of the decoder layer list inside the model.
        target_modules: Short name of each editable MLP linear → its path inside a layer.
        attention: Path of the attention block inside a layer.
        mlp: Path of the MLP block inside a layer.
        final_norm: Path of the normalisation before the output embedding.
        norm_after_mlp: Path inside a layer of the normalisation of the MLP's output before it
            joins the residual stream; None where it joins as it is.
        residual_scale: Factor by which the MLP's output joins the residual stream.
        layer_returns_tuple: Whether a decoder layer returns ``(hidden, weights)``.
        attention_returns: Length of the tuple that an attention block returns; None: a tensor.
        described: Whether this was found from the model itself.
    """

    name: str
    layers: str = "model.layers"
    target_modules: Mapping[str, str] = field(hash=False)
    attention: str = "self_attn"
    mlp: str = "mlp"
    final_norm: str = "model.norm"
    norm_after_mlp: str | None = None
    residual_scale: float = 1.0
    layer_returns_tuple: bool = False
    attention_returns: int | None = 2
    described: bool = False


_GATED = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}

# GPT-J's layers return a tuple up to transformers 5.23, and the hidden states alone since then.
_RELEASE = tuple(int(part) for part in version("transformers").split(".")[:2])

FAMILIES: dict[str, Family] = {
    "llama": Family(name="llama", target_modules=_GATED),
    "mistral": Family(name="mistral", target_modules=_GATED),
    "gemma2": Family(
        name="gemma2",
        target_modules=_GATED,
        norm_after_mlp="post_feedforward_layernorm",
    ),
    "gemma3_text": Family(
        name="gemma3_text",
        target_modules=_GATED,
        norm_after_mlp="post_feedforward_layernorm",
    ),
    "qwen2": Family(name="qwen2", target_modules=_GATED),
    "qwen3": Family(name="qwen3", target_modules=_GATED),
    "phi3": Family(
        name="phi3",
        target_modules={"gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj"},
    ),
    "gptj": Family(
        name="gptj",
        layers="transformer.h",
        target_modules={"up": "mlp.fc_in", "down": "mlp.fc_out"},
        attention="attn",
        final_norm="transformer.ln_f",
        layer_returns_tuple=_RELEASE < (5, 24),
    ),
}


def family_of(model: nn.Module) -> Family:
    """The family of a model, by its configuration's `model_type` or found from its classes.

    Raises:
        UneditableError: The architecture cannot be edited; says why.
    """
    config: Any = model.config
    if (listed := FAMILIES.get(str(config.model_type))) is not None:
        return listed
    key = (type(config), config.to_json_string(use_diff=False))
    if key not in _described:
        _described[key] = describe(copy.deepcopy(config))
    return _described[key]


_described: dict[tuple[type, str], Family] = {}


def describe(config: Any) -> Family:
    """The description of the model of a configuration, found from its classes without weights.

    Raises:
        UneditableError: The architecture cannot be edited; says why.
    """
    # Both look at each other: what is found is a Family.
    from rledit.layout_discovery import described

    return described(blank_model(config))


def blank_model(config: Any) -> nn.Module:
    """The model of a configuration on the meta device: classes and shapes without numbers.

    Raises:
        UneditableError: It is no causal language model of one stack, or its sizes do not fit.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if getattr(config, "is_encoder_decoder", False):
        raise UneditableError(
            "it is an encoder-decoder model: a prompt is read by one stack and answered by "
            "another, while edits here are judged on one text that the answer continues; take a "
            "decoder-only model"
        )
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UneditableError(
            "transformers has no causal language model of this type (AutoModelForCausalLM); take "
            "a text-only decoder"
        )
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise UneditableError(
            f"no model can be built from its configuration ({type(error).__name__}: "
            f"{str(error)[:200]})"
        ) from None
    return model


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a linear, whichever way its matrix lies, and where a slice of it does."""
    from torch import nn

    if is_transposed(module):
        found: Any = module
        return int(found.nx), int(found.nf)
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear keeps its matrix as (d_in x d_out), as GPT-2's `Conv1D` does."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def shorthand_names(family: Family, n_layers: int, spec: Sequence[str]) -> list[str]:
    """The full names that shorthands ``kind:layers`` stand for; other items as they are.

    Raises:
        ValueError: The family has no linear layer of that kind, or the layers cannot be read.
    """
    names: list[str] = []
    for item in spec:
        match = _SHORTHAND.match(item)
        if match is None:
            names.append(item)
            continue
        kind = match["kind"]
        if kind not in family.target_modules:
            fused = kind in ("gate", "up") and "gate_up" in family.target_modules
            raise ValueError(
                f"edited module {item!r}: family {family.name!r} has no {kind!r}"
                f"{', its gate and up are one fused matrix' if fused else ''}; "
                f"it has {', '.join(family.target_modules)}"
            )
        for layer in _layer_numbers(match["layers"], n_layers, item):
            names.append(f"{family.layers}.{layer}.{family.target_modules[kind]}")
    return names


_SHORTHAND = re.compile(r"^(?P<kind>[a-z_]+):(?P<layers>[\d,\- ]+|all|upper)$")


def edited_modules(model: nn.Module, spec: Sequence[str]) -> tuple[str, ...]:
    """Resolve edited modules, in the order given: it fixes each module's index.

    Args:
        model: The language model.
        spec: Full module names (``model.layers.3.mlp.down_proj``) or shorthands
            ``kind:layers`` with kind from the family's `target_modules` and layers like
            ``11-15``, ``3,5``, ``all``, or ``upper``: the three below the last one.

    Returns:
        Full module names.

    Raises:
        ValueError: A module does not exist in this model, or is not an ``nn.Linear``.
    """
    family = family_of(model)
    n_layers = len(model.get_submodule(family.layers))  # type: ignore[arg-type]
    names = shorthand_names(family, n_layers, spec)
    for name in names:
        _require_linear(model, name, family, n_layers)
    if len(set(names)) != len(names):
        raise ValueError(f"edited modules repeat: {', '.join(names)}")
    return tuple(names)


def layer_index(family: Family, module: str) -> int:
    """Layer number of a module name such as ``model.layers.3.mlp.down_proj``."""
    match = re.match(rf"{re.escape(family.layers)}\.(\d+)\.", module)
    if match is None:
        raise ValueError(f"module {module!r} is not inside {family.layers!r}")
    return int(match[1])


def _layer_numbers(text: str, n_layers: int, item: str) -> list[int]:
    if text == "upper":
        return list(range(max(0, n_layers - 4), max(1, n_layers - 1)))
    if text == "all":
        return list(range(n_layers))
    numbers: list[int] = []
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        try:
            lowest, highest = int(first), int(last or first)
        except ValueError:
            raise ValueError(
                f"edited module {item!r}: layers must look like 3, 3,5 or 11-15"
            ) from None
        if highest < lowest:
            raise ValueError(
                f"edited module {item!r}: no layer is in {part}; write {highest}-{lowest}"
            )
        numbers += range(lowest, highest + 1)
    return numbers


def _require_linear(model: nn.Module, name: str, family: Family, n_layers: int) -> None:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"edited module {name!r} does not exist in this {family.name} model of "
            f"{n_layers} layers; MLP modules per layer: {', '.join(family.target_modules.values())}"
        ) from None
    from torch import nn

    if not (isinstance(module, nn.Linear) or is_transposed(module)):
        raise ValueError(f"edited module {name!r} is a {type(module).__name__}, not an nn.Linear")
