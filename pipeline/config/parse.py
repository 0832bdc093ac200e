"""Parser of grids: YAML plus ``--set`` into validated entries, every error with its file and
line."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.config.gguf_refs import gguf_reference
from pipeline.config.grid import (
    AnswersEntry,
    CovarianceEntry,
    DatasetEntry,
    EditorEntry,
    EvalDataEntry,
    Grid,
    ModelEntry,
    StreamEntry,
    check_measurements,
)
from pipeline.config.hub_refs import names_revision, unpinned_checkpoint
from pipeline.config.presets import PRESETS
from pipeline.config.ranges import number_problems, shape_problem
from pipeline.config.resources import ResourcesEntry
from pipeline.config.scale import scaled
from pipeline.config.words import (
    SCALES,
    STYLES,
    documented,
    documented_text,
    stored_settings,
    stored_value,
    use_documented,
    use_documented_path,
    warn_of,
)
from pipeline.config.yaml_location import KeyPath, Located
from pipeline.errors import ConfigError
from rledit.datasets import FORMATS, DatasetError
from rledit.datasets.pools import PoolFiles
from rledit.editors import editor_class
from rledit.metrics import PROTOCOLS
from rledit.names import nearest
from rledit.steps import SettingError
from rledit.world import SCHEMAS, WORLD_MODELS, WorldConfig

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
    grid = parse_grid(located)
    found = scaled(grid, scale, limit)
    small = found.scale != "full" and (scale is not None or "scale" in located.data)
    check_asked_for(located, small)
    return found


def read_grid(path: Path, overrides: Sequence[str] = ()) -> Located:
    """Read the file of a grid with its ``--set``, in the documented words.

    Raises:
        ConfigError: The file is missing or no YAML, a setting does not fit it, or a group has both
            words for one thing.
    """
    located = Located.read(path)
    replaced = use_documented(located)
    for text in overrides:
        replaced += _override(located.data, text)
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
    grid = build(Grid, data, (), located)
    _check_names(grid, located)
    return grid


def build(cls: type[T], data: Any, path: KeyPath, located: Located) -> T:
    """Build a dataclass from a mapping, naming the place of whatever does not fit.

    Raises:
        ConfigError: An unknown key, a missing one, or a value of the wrong type.
    """
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(f"{located.place(path)}: expected a mapping, found {data!r}")

    def refuse(problems: Iterable[tuple[tuple[str | int, ...], str]]) -> None:
        """All at once, each with its place."""
        if lines := [f"{located.place((*path, *at))}: {what}" for at, what in problems]:
            raise ConfigError("\n".join(lines))

    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    words = {documented(name): name for name in known}
    for key, value in data.items():
        field = known.get(words.get(str(key), str(key)))
        if field is None:
            raise ConfigError(
                f"{located.place((*path, key))}: unknown key {key!r}{nearest(str(key), words)}"
            )
        if (problem := shape_problem(field, value)) is not None:
            raise ConfigError(f"{located.place((*path, documented(key)))}: {problem}")
    refuse(number_problems(data))  # before a group's own checks reckon with them
    try:
        given = {words.get(key, key): value for key, value in data.items()}
        built = _adapter(cls).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first.get("ctx", {}).get("error")
        if isinstance(reason, SettingError):
            key = (*path, *first["loc"], documented(reason.setting))
            raise ConfigError(f"{located.place(key)}: {reason}") from None
        found = "" if first["type"] == "missing" else f" (found {first['input']!r})"
        where, message = _place_and_message(error)
        where = tuple(documented(part) if isinstance(part, str) else part for part in where)
        said = documented_text(message)
        raise ConfigError(f"{located.place((*path, *where))}: {said}{found}") from None
    refuse(number_problems({name: getattr(built, name) for name in known}))  # text is read by now
    return built


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


def _place_and_message(error: ValidationError) -> tuple[KeyPath, str]:
    """Key and message of the first error; of a key that may be one thing or another, all of it."""
    first, *others = error.errors()
    key = first["loc"][:-1]
    alike = [e["msg"] for e in others if key and e["loc"][:-1] == key]
    if alike and isinstance(first["loc"][-1], str):
        return key, "; or ".join([first["msg"], *alike])
    return first["loc"], first["msg"]


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
    }
)
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


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


def _adapter(cls: type[T]) -> TypeAdapter[T]:
    """A validator of a plain dataclass."""
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def _named(model: Any) -> Any:
    """A model's entry; one that a preset says all of goes by the preset's name."""
    if isinstance(model, dict) and "name" not in model and isinstance(model.get("preset"), str):
        return {"name": model["preset"], **model}
    return model


def _check_names(grid: Grid, located: Located) -> None:
    """Check everything that is looked up by name, and every nested group of settings."""
    for i, entry in enumerate(grid.editors):
        try:
            editor_class(entry.editor)
        except ValueError as error:
            raise ConfigError(f"{located.place(('editors', i, 'editor'))}: {error}") from None
        settings = {"modules": ("down:0",), **entry.settings}
        path: KeyPath = ("editors", i, "settings")
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
    for i, dataset in enumerate(grid.datasets):
        build(WorldConfig, dataset.world, ("datasets", i, "world"), located)
        if dataset.real_facts:
            _check_real_facts(dataset, grid, ("datasets", i), located)
        if dataset.schema is not None:
            _known(dataset.schema, SCHEMAS, ("datasets", i, "schema"), located, "schema")
        if dataset.format != "auto":
            _known(dataset.format, FORMATS, ("datasets", i, "format"), located, "format")
        _check_pools(dataset, ("datasets", i), located)
    if grid.standins and len(grid.standins) != len(grid.streams):
        raise ConfigError(f"{located.place(('proxies',))}: one for each stream, or none at all")
    if (problem := grid.resources.problem()) is not None:
        raise ConfigError(f"{located.place(('resources',))}: {problem}")
    for key in ("seeds", "protocols", "editors", "models", "datasets", "streams"):
        if not getattr(grid, key):
            raise ConfigError(f"{located.place((key,))}: at least one entry is needed")
    _unique([(e.editor, e.variant) for e in grid.editors], "editors", located)
    _unique([m.name for m in grid.models], "models", located)
    _unique([d.name for d in grid.datasets], "datasets", located)


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
    try:
        PoolFiles(dataset.files or ("evaluation",), dataset.shares or None)
    except DatasetError as error:
        key = "shares" if dataset.shares else "files"
        raise ConfigError(f"{located.place((*path, key))}: {error}") from None


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


def _known(
    name: str, registry: Mapping[str, Any], path: KeyPath, located: Located, kind: str
) -> None:
    if name not in registry:
        raise ConfigError(
            f"{located.place(path)}: unknown {kind} {name!r}{nearest(name, list(registry))}"
        )


def _require_list(data: Mapping[str, Any], key: str, located: Located) -> None:
    if isinstance(data.get(key), list):
        return
    found = "" if data.get(key) is None else f", not {type(data[key]).__name__} {data[key]!r}"
    raise ConfigError(
        f"{located.place((key,))}: the grid needs a list of {key}{found}; write each entry in a "
        "line of its own, with a dash before it"
    )


def _override(data: dict[str, Any], text: str) -> list[str]:
    """Apply one ``key.path=value`` to the parsed YAML; which of its words are old."""
    dotted, equals, value = text.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {text}: expected key.path=value")
    parts = use_documented_path(given := dotted.split("."))
    here: Any = data
    for i, part in enumerate(parts[:-1]):
        here = _descend(here, part, f"--set {text}: {'.'.join(parts[: i + 1])}")
    here_key: Any = parts[-1]
    if isinstance(here, list):
        here_key = _index(here, parts[-1], f"--set {text}")
    elif not isinstance(here, dict):
        raise ConfigError(f"--set {text}: {'.'.join(parts[:-1])} is a value, not a group")
    try:
        here[here_key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: {value!r} is not valid YAML: {error}") from None
    return [f"{a!r} is now {b!r} (--set)" for a, b in zip(given, parts, strict=True) if a != b]


def _descend(here: Any, part: str, where: str) -> Any:
    if isinstance(here, dict):
        if here.get(part) is None:  # absent, or a key without a value
            here[part] = {}
        return here[part]
    if isinstance(here, list):
        return here[_index(here, part, where)]
    raise ConfigError(f"{where}: is a value, not a group of settings")


def _index(entries: list[Any], part: str, where: str) -> int:
    """Place of an entry in a list, by number, name, editor or variant."""
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    for i, entry in enumerate(entries):
        if isinstance(entry, dict):
            name = entry.get("name", entry.get("preset"))
            names = {name, entry.get("variant"), entry.get("editor")} - {None, ""}
            label = f"{entry.get('editor')}/{entry.get('variant')}"
            if part in names or part == label:
                return i
    known = [
        str(e.get("name") or e.get("variant") or e.get("editor"))
        for e in entries
        if isinstance(e, dict)
    ]
    raise ConfigError(f"{where}: no such entry{nearest(part, known)}")
