"""A model's sizes and modules without its weights, for checks and estimates.

Of the listed families at a preset's or a world model's sizes, all is counted from these. Other
models are built on the meta device, which takes the seconds that importing their classes takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from pipeline.config.presets import PRESETS, Shape
from pipeline.inputs.checkpoints import (
    CheckpointError,
    cached,
    fetch_description,
    hub_reachable,
    read_config,
)
from pipeline.inputs.gguf_checkpoints import known_preset
from pipeline.inputs.model_loading import configured, text_part_of
from pipeline.inputs.quantised_weights import Quantised, quantised
from pipeline.plan.cells import Cell
from rledit.families import (
    FAMILIES,
    Family,
    UneditableError,
    blank_model,
    edited_modules,
    family_of,
    layer_index,
    linear_shape,
    shorthand_names,
)
from rledit.world import World, WorldConfig, WorldModelSpec
from rledit.world.presets import model_config
from rledit.world.words import special_words, world_words

if TYPE_CHECKING:
    from torch import nn

_WORLD_LENGTH = 64
# What a family's configuration has beyond its sizes; see `Shape`.
_TRAITS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"head_norms": 2},
    "gemma2": {"tied": True, "norms": 4},
    "gemma3_text": {"tied": True, "norms": 4, "head_norms": 2},
    "phi3": {},
    "gptj": {"gated": False, "mlp_bias": True, "head_bias": True},
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a model.

    Attributes:
        source: Where the configuration comes from, for the reader.
        family: Its `model_type`.
        description: Where its layers and linear layers lie.
        part_of: The multimodal type whose text part it is; None: a model of its own.
        quantised: How the checkpoint's weights are packed, which are loaded as plain matrices.
        layers: Number of decoder layers.
        parameters: Of the whole model.
        layer_parameters: Of one decoder layer.
        hidden: Width of the residual stream.
        intermediate: Width of the MLP.
        vocabulary: Rows of the output embedding.
        tied: Whether it is the input's, too.
        build: Makes its modules on the meta device.
    """

    source: str
    family: str
    description: Family
    part_of: str | None
    quantised: Quantised | None
    layers: int
    parameters: int
    layer_parameters: int
    hidden: int
    intermediate: int
    vocabulary: int
    tied: bool
    build: Callable[[], nn.Module] = field(repr=False, compare=False)

    @cached_property
    def model(self) -> nn.Module:
        """The modules on the meta device: shapes without numbers."""
        return self.build()

    def target_modules(self, modules: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Target modules by name → (d_in, d_out).

        Raises:
            ValueError: A module does not exist in this model, or is no linear.
        """
        counted = self._counted()
        names = shorthand_names(self.description, self.layers, modules)
        if len(set(names)) == len(names) and all(name in counted for name in names):
            return {name: counted[name] for name in names}
        found = {}
        for name in edited_modules(self.model, modules):
            found[name] = linear_shape(self.model.get_submodule(name))
        return found

    def _counted(self) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) of every MLP linear layer, of a listed family."""
        if self.description.described:
            return {}
        inward, outward = (self.hidden, self.intermediate), (self.intermediate, self.hidden)
        both = (self.hidden, 2 * self.intermediate)
        shapes = {"gate": inward, "up": inward, "gate_up": both, "down": outward}
        return {
            f"{self.description.layers}.{layer}.{path}": shapes[kind]
            for layer in range(self.layers)
            for kind, path in self.description.target_modules.items()
        }

    def first_layer(self, modules: Sequence[str]) -> int:
        """The lowest edited layer; passes for gradients go back no further."""
        names = self.target_modules(modules)
        return min((layer_index(self.description, name) for name in names), default=self.layers)

    def edits_last_layer(self, modules: Sequence[str]) -> bool:
        """Whether a module of the uppermost layer is edited."""
        names = self.target_modules(modules)
        return any(layer_index(self.description, name) == self.layers - 1 for name in names)


def read_layer_of(cell: Cell, architecture: Architecture) -> int:
    """The layer that a cell's passes begin at again and again, see `Cell.read_modules`.

    The number of layers where it has none: nothing is edited, and no preset says what others edit,
    or the model is not of the preset's size.

    Raises:
        ValueError: A module that is edited does not exist.
    """
    try:
        return architecture.first_layer(cell.read_modules)
    except ValueError:
        if cell.settings.modules:
            raise
        return architecture.layers


def architecture_of(cell: Cell) -> Architecture:
    """The architecture of a cell's model, without its weights.

    The configuration is that of the checkpoint's folder or of the hub; where the hub cannot be
    reached and the model names a preset, the preset's published sizes. Neither is a GGUF file
    fetched that a preset knows.

    Raises:
        CheckpointError: The checkpoint's configuration cannot be had, its weights are packed in a
            way that is not undone, or its architecture cannot be edited.
    """
    checkpoint, preset = cell.model.checkpoint, cell.model.preset
    if checkpoint is None:
        return _of_world(cell.model_spec, json.dumps(cell.dataset.world))
    folder = cached(checkpoint)
    if folder is None and (known := known_preset(checkpoint)) is not None:
        return _of_preset(known)
    if folder is None and not hub_reachable() and preset is not None:
        return _of_preset(preset)
    if folder is None:
        folder = fetch_description(checkpoint)
    return _of_config(json.dumps(read_config(folder)), checkpoint)


@lru_cache(maxsize=8)
def _of_config(text: str, checkpoint: str) -> Architecture:
    values: dict[str, Any] = json.loads(text)
    config = configured(values, checkpoint)
    packed = quantised(values)
    if packed is not None and packed.problem is not None:
        raise CheckpointError(f"checkpoint {checkpoint!r}: {packed.problem}")
    try:
        return _built(config, "config.json", text_part_of(values), packed)
    except UneditableError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: model_type {config.model_type!r} cannot be edited: "
            f"{error}. Edited are {', '.join(sorted(FAMILIES))}, and what is found to be a stack "
            "of attention and dense MLPs"
        ) from None


@lru_cache(maxsize=8)
def _of_preset(name: str) -> Architecture:
    preset = PRESETS[name]
    family, shape = preset.family, preset.shape

    def config() -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(family, **_sizes(family, shape))

    return _counted(family, shape, f"preset {name}", config)


@lru_cache(maxsize=8)
def _of_world(model: WorldModelSpec, world: str) -> Architecture:
    words = world_words(World(WorldConfig(**json.loads(world))))
    vocabulary = len(special_words(model.chat)) + len(words)
    shape = Shape(
        layers=model.layers,
        hidden=model.hidden,
        intermediate=model.intermediate,
        heads=model.heads,
        kv_heads=model.kv_heads or model.heads,
        head_dim=model.hidden // model.heads,
        vocabulary=vocabulary,
        **_TRAITS[model.family],
    )

    def config() -> Any:
        return model_config(model, vocab_size=vocabulary, max_length=_WORLD_LENGTH, special={})

    return _counted(model.family, shape, "trained on the spot", config)


def _counted(family: str, shape: Shape, source: str, config: Callable[[], Any]) -> Architecture:
    """A model of a listed family by its sizes."""
    if not shape.layers:
        raise UneditableError("its settings give it no layers")
    return Architecture(
        source=source,
        family=family,
        description=FAMILIES[family],
        part_of=None,
        quantised=None,
        layers=shape.layers,
        parameters=shape.parameters,
        layer_parameters=shape.layer_parameters,
        hidden=shape.hidden,
        intermediate=shape.intermediate,
        vocabulary=shape.vocabulary,
        tied=shape.tied,
        build=lambda: blank_model(config()),
    )


def _sizes(family: str, shape: Shape) -> Mapping[str, Any]:
    """The keys of a family's configuration."""
    if family == "gptj":
        return {
            "n_embd": shape.hidden,
            "n_inner": shape.intermediate,
            "n_layer": shape.layers,
            "n_head": shape.heads,
            "vocab_size": shape.vocabulary,
            "tie_word_embeddings": shape.tied,
        }
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
    }


def _built(
    config: Any, source: str, part_of: str | None = None, packed: Quantised | None = None
) -> Architecture:
    model = blank_model(config)
    family = family_of(model)
    layers: Any = model.get_submodule(family.layers)
    if not len(layers):
        raise UneditableError("its config.json gives it no layers")
    inner, hidden = linear_shape(layers[0].get_submodule(family.target_modules["down"]))
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    first: Any = model.get_input_embeddings()  # type: ignore[operator]
    return Architecture(
        source=source,
        family=config.model_type,
        description=family,
        part_of=part_of,
        quantised=packed,
        layers=len(layers),
        parameters=_count(model),
        layer_parameters=_count(layers[0]),
        hidden=hidden,
        intermediate=inner,
        vocabulary=head.weight.shape[0],
        tied=head.weight is first.weight,
        build=lambda: model,
    )


def _count(module: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in module.parameters())
