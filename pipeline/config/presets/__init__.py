"""Presets of models: every method's settings, and the proxy models beside them."""

from __future__ import annotations

from typing import Any

from pipeline.config.presets.models import MODELS, PackedFile, Preset
from pipeline.config.presets.newer_models import NEWER_MODELS
from pipeline.config.presets.proxy import (
    METHODS,
    METHODS_BEHIND_A_NORM,
    mapped_modules,
    taught,
)
from pipeline.config.presets.settings import ANY, OWN, Setting
from pipeline.config.presets.shape import Shape
from rledit.families import FAMILIES
from rledit.names import look_up
from rledit.world import SCHEMAS

PRESETS: dict[str, Preset] = {**MODELS, **NEWER_MODELS}

# Whose linear layers an editor takes that no preset knows: by the kind of linear layers it can
# edit.
_LIKE = {"any": "rledit", "down": "memit", "one_down": "rome"}


def preset_setting(
    preset: str, editor: str, schema: str | None, target_modules: str = "any"
) -> Setting:
    """A method's published settings on a model and dataset.

    Args:
        preset: Name of the model's preset.
        editor: Name of the method; one that the preset does not know edits the linear layers of the
            method most like it.
        schema: Schema of the dataset; None, or one without settings of its own: those for any.
        target_modules: `Editor.target_modules` of the method.

    Raises:
        ValueError: There is no such preset.
    """
    known = look_up(PRESETS, preset, "preset").settings
    if editor in known:
        return known[editor].get(schema or ANY) or known[editor][ANY]
    like = known[_LIKE[target_modules]]
    found = like.get(schema or ANY) or like[ANY]
    return Setting(values={"modules": found.values["modules"]}, origin=OWN)


def proxy_setting(
    preset: str, editor: str, schema: str | None, target_modules: str = "any"
) -> Setting:
    """The settings of a model's proxy: linear layers at the same relative depth, steps to its
    size."""
    published = preset_setting(preset, editor, schema, target_modules)
    depth, family = PRESETS[preset].shape.layers, PRESETS[preset].family
    claims = target_modules == "any" and schema is not None and SCHEMAS[schema].claims
    values: dict[str, Any] = {
        **published.values,
        "modules": mapped_modules(published.values["modules"], depth, family, claims),
        **METHODS.get(editor, {}),
        **(METHODS_BEHIND_A_NORM.get(editor, {}) if FAMILIES[family].norm_after_mlp else {}),
    }
    origin = f"proxy: layers of {depth} mapped to the same relative depth, sizes of a toy model"
    return Setting(values=values, origin=origin)


__all__ = [
    "OWN",
    "PRESETS",
    "PackedFile",
    "Preset",
    "Setting",
    "Shape",
    "mapped_modules",
    "preset_setting",
    "proxy_setting",
    "taught",
]
