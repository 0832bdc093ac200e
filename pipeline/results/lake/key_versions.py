"""Identities of cells as the lake keeps them, and those of earlier versions in today's form.

Versions before key version 2 counted labels to a cell's identity: the names of grid, model, dataset
and variant, and the scale. Their rows stay as they were written and are known by today's key, which
is made from the identity beside them without its labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY_VERSION = 2
_LABELLED = 1  # the version whose identities hold labels
_ABSENT = "absent"
# What follows from the seed, and what cells are scored by and where, or run on.
_NO_SETTING = (
    "key_version", "seed", "training_seed", "stream", "threads", "protocols", "measurements",
    "checkpoints", "also_after", "wild",
)  # fmt: skip


def identity_hash(content: Mapping[str, Any]) -> str:
    """Sixteen hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without_labels(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity in today's form; one that has no labels is returned as it is."""
    if identity.get("key_version") != _LABELLED or "grid" not in identity:
        return dict(identity)
    kept = {name: value for name, value in identity.items() if name not in ("grid", "variant")}
    model, dataset = dict(kept["model"]), dict(kept["dataset"])
    for name in ("name", "scale"):
        model.pop(name, None)
    dataset.pop("name", None)
    return kept | {"key_version": KEY_VERSION, "model": model, "dataset": dataset}


def with_labels(
    identity: Mapping[str, Any], *, grid: str, model: str, dataset: str, variant: str, scale: str
) -> dict[str, Any]:
    """An identity as key version 1 had it; the reverse of `without_labels`."""
    return {
        **identity,
        "key_version": _LABELLED,
        "grid": grid,
        "variant": variant,
        "model": {**identity["model"], "name": model, "scale": scale},
        "dataset": {**identity["dataset"], "name": dataset},
    }


def current_key(key: str, identity: Mapping[str, Any]) -> str:
    """Today's key of a cell that was written under `key`.

    Where the identity is not what the key was made from, as where a secret was hidden in it, the
    key stays.
    """
    current = without_labels(identity)
    labelled = current != identity and identity_hash(identity) == key
    return identity_hash(current) if labelled else key


def averaged_settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What cells of several seeds must agree in to be averaged, of one's identity.

    Left out are the seed and what follows from it, and what changes no score: by what else, and
    where else along the stream, a cell is scored. Data has a note of its own.
    """
    kept = {k: v for k, v in without_labels(identity).items() if k not in _NO_SETTING}
    for name, own in (("settings", "seed"), ("dataset", "data_hash")):
        if isinstance(kept.get(name), Mapping):
            kept[name] = {k: v for k, v in kept[name].items() if k != own}
    return kept


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
