"""Parser of grids: YAML plus ``--set`` into validated entries, every error with its file and
line."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config.build import build
from pipeline.config.grid import (
    AnswersEntry,
    CovarianceEntry,
    DatasetEntry,
    EditorEntry,
    EvalDataEntry,
    Grid,
    ModelEntry,
    StreamEntry,
    WildEntry,
    check_measurements,
)
from pipeline.config.names import checked
from pipeline.config.overrides import override
from pipeline.config.resources import ResourcesEntry
from pipeline.config.scale import scaled
from pipeline.config.stored_words import (
    SCALES,
    STYLES,
    documented,
    stored_settings,
    stored_value,
    use_documented,
    warn_of,
)
from pipeline.config.yaml_location import Located
from pipeline.errors import ConfigError

T = TypeVar("T")


def load_grid(
    path: Path,
    overrides: Sequence[str] = (),
    scale: str | None = None,
    limit: int | None = None,
) -> Grid:
    """Read and validate a grid.

    Args:
        path: The YAML file.
        overrides: ``key.path=value`` settings; a list of named entries is addressed by name, as
            in ``editors.rledit.settings.rank=64``. Values are YAML.
        scale: What is built from the models' presets; None: what the grid says.
        limit: Cut every stream to so many batches; None: leave them.

    Raises:
        ConfigError: Anything unknown or ill-typed; names the place and the nearest valid names.
    """
    located = read_grid(path, overrides)
    if not any(text.startswith("editors=") for text in overrides):
        _add_unedited(located.data)
    grid = parse_grid(located)
    found = scaled(grid, scale, limit)
    small = found.scale != "full" and (scale is not None or "scale" in located.data)
    check_asked_for(located, small)
    return found


def _add_unedited(data: dict[str, Any]) -> None:
    """Name the unedited model among the editors of a grid that leaves it out unsaid."""
    editors = data.get("editors")
    if data.get("unedited", True) is not True or not isinstance(editors, list) or not editors:
        return
    if all(isinstance(entry, Mapping) and entry.get("editor") != "none" for entry in editors):
        data["editors"] = [*editors, {"editor": "none"}]


def read_grid(path: Path, overrides: Sequence[str] = ()) -> Located:
    """Read the file of a grid with its ``--set``, in the documented words.

    Raises:
        ConfigError: The file is missing or no YAML, a setting does not fit it, or a group has both
            words for one thing.
    """
    located = Located.read(path)
    replaced = use_documented(located)
    for text in overrides:
        replaced += override(located.data, text)
    warn_of(replaced + use_documented(located))
    return located


def parse_grid(located: Located) -> Grid:
    """Validate a parsed grid, in documented words or in stored ones."""
    data = dict(located.data)
    _require_list(data, "streams", located)
    data |= _proxies(data["streams"], located)
    for key, entry in _ENTRIES.items():
        _require_list(data, key, located)
        if key == "models":
            data[key] = [_named(item) for item in data[key]]
        data[key] = tuple(
            build(entry, _as_stored(item), (key, i), located) for i, item in enumerate(data[key])
        )
    for key, entry in _GROUPS.items():
        for word in {key, documented(key)} & data.keys():
            data[word] = build(entry, data[word], (documented(key),), located)
    measurements = data.get("measurements")
    if isinstance(measurements, list):
        if (problem := check_measurements(measurements)) is not None:
            raise ConfigError(f"{located.place(('measurements',))}: {problem}")
        data["measurements"] = [stored_value(name) for name in measurements]
    if isinstance(data.get("scale"), str):
        data["scale"] = stored_value(data["scale"], SCALES)
    elif "scale" not in data and _is_real(data):
        data["scale"] = "full"
    return checked(build(Grid, data, (), located), located)


def _is_real(data: Mapping[str, Any]) -> bool:
    """Whether a grid that names no scale has models of presets, and data of its own for them."""
    models: Sequence[ModelEntry] = data["models"]
    datasets: Sequence[DatasetEntry] = data["datasets"]
    presets = any(model.preset is not None for model in models)
    return presets and any(entry.files or entry.real_facts for entry in datasets)


def check_asked_for(located: Located, small: bool) -> None:
    """Refuse to take the synthetic world for data that nobody has given.

    The world is asked for by the name `world`, by the key ``world``, or by a schema at a scale that
    was chosen. Any other dataset has files, or the facts that the package ships.

    Args:
        located: The grid as its file has it.
        small: Whether proxy models were asked for, so that a dataset of a schema is made of the
            world.

    Raises:
        ConfigError: A dataset names no files, facts or world; says what to give.
    """
    for i, entry in enumerate(located.data["datasets"]):
        name, schema = entry.get("name", "world"), entry.get("schema")
        if "world" in entry or entry.get("files") or (small and schema is not None):
            continue
        if entry.get("real_facts"):
            continue
        if name == "world" and schema is None:
            continue
        of = "" if schema is None else f" of schema {schema!r}"
        scales = "" if schema is None else ", or choose proxy models with --scale proxy"
        raise ConfigError(
            f"{located.place(('datasets', i))}: dataset {name!r}{of} has no files. Give them, e.g. "
            f"files: {{evaluation: {name}-edit.json, train: {name}-train.json}}, or take the "
            f"shipped facts with real_facts: true; the embedded "
            f"synthetic world is taken under this name only if you ask for it with world: {{}}"
            f"{scales}"
        )


_ENTRIES: Mapping[str, type] = types.MappingProxyType(
    {
        "models": ModelEntry,
        "datasets": DatasetEntry,
        "editors": EditorEntry,
        "streams": StreamEntry,
    }
)
_GROUPS: Mapping[str, type] = types.MappingProxyType(
    {
        "statistics": CovarianceEntry,
        "material": EvalDataEntry,
        "resources": ResourcesEntry,
        "answers": AnswersEntry,
        "wild": WildEntry,
    }
)


def _proxies(streams: Sequence[Any], located: Located) -> dict[str, Any]:
    """The streams apart from their proxy models, which are no part of a cell."""
    words = ("proxy", "standin")
    given = [
        next((s[word] for word in words if word in s), None) if isinstance(s, Mapping) else None
        for s in streams
    ]
    if not any(given):
        return {}
    found = [
        None if s is None else build(StreamEntry, s, ("streams", i, "proxy"), located)
        for i, s in enumerate(given)
    ]
    own = [
        {key: s[key] for key in s if key not in words} if isinstance(s, Mapping) else s
        for s in streams
    ]
    return {"streams": own, "standins": tuple(found)}


def _as_stored(entry: Any) -> Any:
    """An entry of a list, with the settings that are kept as they are given in stored words."""
    if not isinstance(entry, Mapping):
        return entry
    found = {
        key: stored_settings(value, key) if key in ("settings", "world") else value
        for key, value in entry.items()
    }
    if isinstance(found.get("prompt_style"), str):
        found["prompt_style"] = stored_value(found["prompt_style"], STYLES)
    return found


def _named(model: Any) -> Any:
    """A model's entry; one that a preset says all of goes by the preset's name."""
    if isinstance(model, dict) and "name" not in model and isinstance(model.get("preset"), str):
        return {"name": model["preset"], **model}
    return model


def _require_list(data: Mapping[str, Any], key: str, located: Located) -> None:
    if isinstance(data.get(key), list):
        return
    found = "" if data.get(key) is None else f", not {type(data[key]).__name__} {data[key]!r}"
    raise ConfigError(
        f"{located.place((key,))}: the grid needs a list of {key}{found}; write each entry in a "
        "line of its own, with a dash before it"
    )
