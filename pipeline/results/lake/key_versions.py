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
