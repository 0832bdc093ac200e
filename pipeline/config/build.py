"""Groups of settings from plain data: what is unknown or ill-typed is named with its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.config.ranges import number_problems, shape_problem
from pipeline.config.stored_words import (
    documented,
    documented_text,
)
from pipeline.config.yaml_location import KeyPath, Located
from pipeline.errors import ConfigError
from rledit.names import nearest
from rledit.step_size import SettingError

T = TypeVar("T")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


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


def _place_and_message(error: ValidationError) -> tuple[KeyPath, str]:
    """Key and message of the first error; of a key that may be one thing or another, all of it."""
    first, *others = error.errors()
    key = first["loc"][:-1]
    alike = [e["msg"] for e in others if key and e["loc"][:-1] == key]
    if alike and isinstance(first["loc"][-1], str):
        return key, "; or ".join([first["msg"], *alike])
    return first["loc"], first["msg"]


def _adapter(cls: type[T]) -> TypeAdapter[T]:
    """A validator of a plain dataclass."""
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]
