"""Fingerprints: hashes of plain JSON and of checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.gguf_refs import gguf_reference
from pipeline.config.hub_refs import unpinned_checkpoint
from pipeline.errors import ConfigError
from pipeline.inputs.checkpoints import CheckpointError, weight_files
from pipeline.inputs.file_hashes import sha256_of
from pipeline.inputs.gguf_checkpoints import content_of
from pipeline.results.lake.key_versions import identity_hash

_DESCRIBING = (".json", ".txt", ".model")  # files of a checkpoint's folder beside its weights


def fingerprint(content: Mapping[str, Any]) -> str:
    """Sixteen hex digits of the SHA-256 of canonical JSON."""
    return identity_hash(content)


def checkpoint_fingerprint(checkpoint: str) -> str:
    """What tells one checkpoint from another: its commit on the hub, or its content.

    Of a folder that is its weights, and the files that describe model and tokenizer; of a GGUF
    file all of it, wherever it lies. Weights are read once (see `pipeline.inputs.file_hashes`).

    Raises:
        ConfigError: Neither a folder with a config.json nor a model of the hub at a commit.
        CheckpointError: The folder's weights are none that could be loaded, or lack a file.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        if (gguf := gguf_reference(checkpoint)) is not None:
            return f"gguf:{content_of(gguf)}"
        if (problem := unpinned_checkpoint(checkpoint)) is not None:
            raise ConfigError(problem)
        return checkpoint
    if not (folder / "config.json").is_file():
        raise ConfigError(f"checkpoint {checkpoint!r}: the folder has no config.json")
    files = [path for path in folder.iterdir() if path.suffix in _DESCRIBING and path.is_file()]
    files += weight_files(folder)
    try:
        return fingerprint({path.relative_to(folder).as_posix(): sha256_of(path) for path in files})
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: {error.filename} cannot be read ({error.strerror}); fetch "
            "the checkpoint again, or give it its permissions"
        ) from None


def template_fingerprint(checkpoint: str) -> dict[str, str]:
    """The hash of a folder's chat template, where it lies in a file of its own.

    Elsewhere `checkpoint_fingerprint` covers it: in a folder's JSON files, or at a revision.
    """
    file = Path(checkpoint) / "chat_template.jinja"
    if not file.is_file():
        return {}
    return {"template_hash": hashlib.sha256(file.read_bytes()).hexdigest()[:16]}


def plain(value: Any) -> Any:
    """The value as it reads back from JSON."""
    return json.loads(json.dumps(value))
