"""What tells one thing from another: hashes of plain JSON, and what differs between two."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.yaml_location import ConfigError

_ABSENT = "absent"


def digest(content: Mapping[str, Any]) -> str:
    """Sixteen hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``field: old → new`` for every field in which two identities differ."""
    changes: list[str] = []
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changes += changed_fields(a, b, f"{prefix}{name}.")
        elif a != b:
            changes.append(f"{prefix}{name}: {a} → {b}")
    return changes


def checkpoint_identity(checkpoint: str) -> str:
    """What tells one checkpoint from another: its revision, or the content hash of its folder.

    Weights are told by their headers (names, shapes, offsets) and sizes: reading 16 GB to hash
    them would take longer than many a cell.

    Raises:
        ConfigError: Neither a folder with a config.json nor a pinned hub revision.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        if re.fullmatch(r"[\w.-]+/[\w.-]+@[\w.-]+", checkpoint):
            return checkpoint
        raise ConfigError(
            f"checkpoint {checkpoint!r}: no such folder; a hub model is given with its revision, "
            "as in owner/name@0123abc"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(f"checkpoint {checkpoint!r}: the folder has no config.json")
    total = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".txt", ".model"):
            total.update(path.read_bytes())
        elif path.suffix == ".safetensors":
            with path.open("rb") as file:
                total.update(file.read(8 + int.from_bytes(file.read(8), "little")))
            total.update(str(path.stat().st_size).encode())
    return total.hexdigest()[:16]


def template_identity(checkpoint: str) -> dict[str, str]:
    """The hash of a folder's chat template, where it lies in a file of its own.

    Elsewhere `checkpoint_identity` covers it: in a folder's JSON files, or at a revision.
    """
    file = Path(checkpoint) / "chat_template.jinja"
    if not file.is_file():
        return {}
    return {"template_hash": hashlib.sha256(file.read_bytes()).hexdigest()[:16]}


def plain(value: Any) -> Any:
    """The value as it reads back from JSON."""
    return json.loads(json.dumps(value))
