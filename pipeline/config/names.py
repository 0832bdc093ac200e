"""Checks of a parsed grid: everything that is looked up by name, and what entries may combine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.config.build import build
from pipeline.config.gguf_refs import gguf_reference
from pipeline.config.grid import (
    DatasetEntry,
    EditorEntry,
    Grid,
    ModelEntry,
    listed,
)
from pipeline.config.hub_refs import names_revision, unpinned_checkpoint
from pipeline.config.presets import PRESETS, preset_setting
from pipeline.config.stored_words import documented_value
from pipeline.config.yaml_location import KeyPath, Located
from pipeline.errors import ConfigError
from pipeline.results.lake.layout import LONGEST_FOLDER, LakeError, folder_value
from rledit.datasets import FORMATS, DatasetError
from rledit.datasets.pools import PoolFiles
from rledit.editors import editor_class
from rledit.names import nearest
from rledit.protocols import PROTOCOLS
from rledit.world import SCHEMAS, WORLD_MODELS, WorldConfig


def checked(grid: Grid, located: Located) -> Grid:
    """Check everything that is looked up by name, and every nested group of settings.

    Returns:
        The grid, numbers of its models' `overrides` and datasets' `world` that YAML takes for text
        (``5e-3``) read as numbers.

    Raises:
        ConfigError: Something is unknown or ill-typed, or does not go together.
    """
    models, datasets = [], []
    _check_folders(grid, located)
    for i, entry in enumerate(grid.editors):
        try:
            editor_class(entry.editor)
        except ValueError as error:
            raise ConfigError(f"{located.place(('editors', i, 'editor'))}: {error}") from None
        path: KeyPath = ("editors", i, "settings")
        for base in _preset_recipes(grid, entry):
            settings = {"modules": ("down:0",), **base, **entry.settings}
            config: Any = build(editor_class(entry.editor).Config, settings, path, located)
            for stream in grid.streams:
                problem = editor_class(entry.editor).batch_problem(config, stream.batch_size)
                if problem is not None:
                    raise ConfigError(f"{located.place(path)}: {problem}")
    for i, name in enumerate(grid.protocols):
        _known(name, PROTOCOLS, ("protocols", i), located, "protocol")
    for i, model in enumerate(grid.models):
        if model.preset is not None:
            _known(model.preset, PRESETS, ("models", i, "preset"), located, "preset")
        _known(model.world_model, WORLD_MODELS, ("models", i, "world_model"), located, "model")
        _check_prompts(model, ("models", i, "prompt_style"), located)
        _check_pinned(model, ("models", i, "checkpoint"), located)
        preset = WORLD_MODELS[model.world_model].identity  # without `chat`: prompt_style sets it
        cls = type(WORLD_MODELS[model.world_model])
        if "chat" in model.overrides:
            place = located.place(("models", i, "overrides", "chat"))
            raise ConfigError(f"{place}: the model's `prompt_style` says it; set that")
        spec = build(cls, preset | model.overrides, ("models", i, "overrides"), located)
        if not 0 <= spec.init_std <= 1:  # what transformers accepts
            place = located.place(("models", i, "overrides", "init_std"))
            raise ConfigError(f"{place}: expected at most 1, found {spec.init_std}")
        models.append(replace(model, overrides=_as_read(model.overrides, spec)))
    for i, dataset in enumerate(grid.datasets):
        world = build(WorldConfig, dataset.world, ("datasets", i, "world"), located)
        datasets.append(replace(dataset, world=_as_read(dataset.world, world)))
        if dataset.real_facts:
            _check_real_facts(dataset, grid, ("datasets", i), located)
        if dataset.schema is not None:
            _known(dataset.schema, SCHEMAS, ("datasets", i, "schema"), located, "schema")
        if dataset.format != "auto":
            _known(dataset.format, FORMATS, ("datasets", i, "format"), located, "format")
        _check_pools(dataset, ("datasets", i), located)
        _check_order(dataset, ("datasets", i), located)
        for k, name in enumerate(dataset.protocols):
            own = dict.fromkeys(grid.protocols)
            _known(name, own, ("datasets", i, "protocols", k), located, "protocol of the grid")
        _once(dataset.protocols, ("datasets", i, "protocols"), located)
    for key in ("imported", "projections"):
        for name in getattr(grid.statistics, key):
            named = {model.name: model for model in grid.models}
            _known(name, named, ("covariance", key, name), located, "model of the grid")
    if grid.standins and len(grid.standins) != len(grid.streams):
        raise ConfigError(f"{located.place(('proxies',))}: one for each stream, or none at all")
    if (problem := grid.resources.problem()) is not None:
        raise ConfigError(f"{located.place(('resources',))}: {problem}")
    for key in ("seeds", "protocols", "editors", "models", "datasets", "streams"):
        if not getattr(grid, key):
            raise ConfigError(f"{located.place((key,))}: at least one entry is needed")
    for key in ("seeds", "protocols", "measurements"):
        _once(getattr(grid, key), (key,), located)
    _unique([(e.editor, e.variant) for e in grid.editors], "editors", located)
    _unique([m.name for m in grid.models], "models", located)
    _unique([d.name for d in grid.datasets], "datasets", located)
    return replace(grid, models=tuple(models), datasets=tuple(datasets))


def _as_read(given: Mapping[str, Any], built: Any) -> dict[str, Any]:
    """Settings with the values that were built of them, where these are others: keys of cells hold
    an integer that stands for a float as it is given."""
    read = {key: getattr(built, key) for key in given}
    return {key: value if read[key] == value else read[key] for key, value in given.items()}


def _check_folders(grid: Grid, located: Located) -> None:
    """Refuse names of which no file or folder of results could be made."""
    parts = grid.name.split("/")
    if {"", ".", ".."} & {*parts} or len(quote(grid.name, safe="")) > LONGEST_FOLDER:
        raise ConfigError(
            f"{located.place(('name',))}: {grid.name!r} cannot be the name of a grid's report: "
            f"expected at most {LONGEST_FOLDER} bytes, percent-encoded as in a URI, and between "
            "slashes neither nothing nor .."
        )
    named = [(("models", i, "name"), "model", m.name) for i, m in enumerate(grid.models)]
    named += [(("datasets", i, "name"), "dataset", d.name) for i, d in enumerate(grid.datasets)]
    for path, kind, name in named:
        try:
            folder_value(kind, name)
        except LakeError as error:
            raise ConfigError(f"{located.place(path)}: {error}") from None


def _preset_recipes(grid: Grid, entry: EditorEntry) -> list[dict[str, Any]]:
    """What the models' presets say of an editor's recipe, on which its other settings may rest."""
    cls = editor_class(entry.editor)
    found: list[dict[str, Any]] = []
    for model in grid.models:
        recipe = {}
        if model.preset in PRESETS and any(f.name == "reference" for f in fields(cls.Config)):
            preset = preset_setting(str(model.preset), cls.name, None, cls.target_modules)
            recipe = {k: v for k, v in preset.values.items() if k == "reference"}
        if recipe not in found:
            found.append(recipe)
    return found or [{}]


def _check_real_facts(dataset: DatasetEntry, grid: Grid, path: KeyPath, located: Located) -> None:
    """Refuse settings that the shipped facts have no use for, and models that know none."""
    plain = DatasetEntry()
    for key in ("schema", "world", "files", "shares", "format", "order"):
        if getattr(dataset, key) != getattr(plain, key):
            raise ConfigError(
                f"{located.place((*path, key))}: real_facts are shipped with the package, and have "
                f"no use for {key}; leave one of the two out"
            )
    for model in grid.models:
        if model.checkpoint is None and model.preset is None:
            raise ConfigError(
                f"{located.place((*path, 'real_facts'))}: model {model.name} is trained on the "
                "synthetic world and knows no real facts; give it a `checkpoint` or a `preset`, or "
                "leave real_facts out"
            )


def _check_pools(dataset: DatasetEntry, path: KeyPath, located: Located) -> None:
    """Refuse files and shares of which something would go unused."""
    if not (dataset.files or dataset.shares):
        return
    for pool, given in dataset.files.items():
        names = listed(given)
        twice = next((name for name in names if names.count(name) > 1), None)
        if not names or twice is not None:
            what = "is an empty list; name a file" if not names else f"names {twice} twice"
            raise ConfigError(f"{located.place((*path, 'files', pool))}: {what}")
    try:
        PoolFiles(dataset.files or ("evaluation",), dataset.shares or None)
    except DatasetError as error:
        key = "shares" if dataset.shares else "files"
        raise ConfigError(f"{located.place((*path, key))}: {error}") from None


def _check_order(dataset: DatasetEntry, path: KeyPath, located: Located) -> None:
    """Refuse an order of what has none: the synthetic world is drawn by lot."""
    if dataset.order != "shuffled" and not dataset.files and dataset.schema is None:
        raise ConfigError(
            f"{located.place((*path, 'order'))}: order: {dataset.order} is one of files, and "
            f"dataset {dataset.name} has none; give files, or leave order out"
        )


def _check_prompts(model: ModelEntry, path: KeyPath, located: Located) -> None:
    """Refuse to chat with a published model that was not made for it."""
    if model.prompt_style == "bare" or model.preset is None or model.checkpoint is not None:
        return
    if not PRESETS[model.preset].instruct:
        instruct = ", ".join(name for name, preset in PRESETS.items() if preset.instruct)
        raise ConfigError(
            f"{located.place(path)}: preset {model.preset!r} was not tuned on instructions and is "
            f"not asked in a chat; take one that was ({instruct}), a `checkpoint` of your own, or "
            "prompt_style plain"
        )


def _check_pinned(model: ModelEntry, path: KeyPath, located: Located) -> None:
    """Refuse a model of the hub at a branch or a tag, or a wheel without an exact version; whether
    a folder or file is there is told later."""
    name = model.checkpoint
    try:
        if name is None or gguf_reference(name) is not None:
            return
    except ConfigError as error:
        raise ConfigError(f"{located.place(path)}: {error}") from None
    if not names_revision(name) or Path(name).is_dir():
        return
    if (problem := unpinned_checkpoint(name)) is not None:
        raise ConfigError(f"{located.place(path)}: {problem}")


def _unique(names: Sequence[Any], key: str, located: Located) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(
                f"{located.place((key, i))}: {name!r} occurs twice; give one of them another "
                f"{'variant' if key == 'editors' else 'name'}"
            )


def _once(values: Sequence[Any], path: KeyPath, located: Located) -> None:
    """Refuse what would be run, scored or measured twice, and counted so."""
    for i, value in enumerate(values):
        if value in values[:i]:
            shown = documented_value(value) if isinstance(value, str) else value
            raise ConfigError(
                f"{located.place((*path, i))}: {shown!r} occurs twice; leave one of the two out"
            )


def _known(
    name: str, registry: Mapping[str, Any], path: KeyPath, located: Located, kind: str
) -> None:
    if name not in registry:
        raise ConfigError(
            f"{located.place(path)}: unknown {kind} {name!r}{nearest(name, list(registry))}"
        )
