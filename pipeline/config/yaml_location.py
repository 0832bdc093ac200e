"""Line numbers of YAML keys, for error messages that point at the place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError

KeyPath = tuple[str | int, ...]
_MERGE = "<<"  # a mapping may take over several others


class Located:
    """A parsed YAML document that remembers the line of every key.

    Args:
        text: The document.
        name: Its file name, for messages.

    Raises:
        ConfigError: The text is not YAML, not a mapping, or has a key twice in one mapping, where
            YAML would drop the first value unsaid.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data: dict[str, Any] = _unshared(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"{name} is not valid YAML: {error}") from None
        if self.data is None:
            raise ConfigError(f"{name} is empty: expected a mapping of settings, key: value")
        if not isinstance(self.data, dict):
            kind = "a list" if isinstance(self.data, list) else "a single value"
            raise ConfigError(f"{name}: expected a mapping of settings, key: value, found {kind}")
        self._lines: dict[KeyPath, int] = {}
        self._walk(node, ())

    @classmethod
    def of_data(cls, data: Mapping[str, Any], name: str) -> Located:
        """Settings that stand in no file: places are their keys behind a name, without lines."""
        located = cls.__new__(cls)  # there is no text to read
        located.name, located.data, located._lines = name, dict(data), {}
        return located

    @classmethod
    def read(cls, path: Path) -> Located:
        """Read a file.

        Raises:
            ConfigError: The file is missing or not YAML.
        """
        if not path.is_file():
            near = (
                sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
            )
            hint = f"; {path.parent} has {', '.join(near)}" if near else ""
            raise ConfigError(f"no grid file at {path}{hint}")
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{path} is not UTF-8 at its byte {error.start}: expected the YAML file of a grid"
            ) from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None

    def place(self, path: KeyPath) -> str:
        """``file:line (key.path)`` of the deepest known part of a path."""
        known = path
        while known and known not in self._lines:
            known = known[:-1]
        dotted = ".".join(str(part) for part in path)
        line = f":{self._lines[known]}" if known in self._lines else ""
        return f"{self.name}{line} ({dotted})" if dotted else self.name

    def line(self, path: KeyPath) -> int | None:
        """The line of a key; None where it stands in no file, such as one of ``--set``."""
        return self._lines.get(path)

    def rename(self, path: KeyPath, old: str, new: str) -> None:
        """Give a key of the mapping at `path` another name; its line, and those below it, stay."""
        group: Any = self.data
        for part in path:
            group = group[part]
        items = [(new if key == old else key, value) for key, value in group.items()]
        group.clear()
        group.update(items)
        depth = len(path)
        self._lines = {
            (*path, new, *at[depth + 1 :]) if at[: depth + 1] == (*path, old) else at: line
            for at, line in self._lines.items()
        }

    def _walk(self, node: Any, path: KeyPath) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = (*path, key.value)
                if inner in self._lines and key.value != _MERGE:
                    raise ConfigError(
                        f"{self.name}:{key.start_mark.line + 1}: the key {key.value!r} is given "
                        f"twice, first in line {self._lines[inner]}; leave one of the two out"
                    )
                self._lines[inner] = key.start_mark.line + 1
                self._walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                inner = (*path, i)
                self._lines[inner] = value.start_mark.line + 1
                self._walk(value, inner)


def _unshared(value: Any) -> Any:
    """A parsed value in which what several places take by an alias (`*name`) is each one's own.

    So that a setting of the command line changes the entry that it names and no other.
    """
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value
