"""The tokenizer of a checkpoint before its weights are there: loaded from its small files."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.inputs.checkpoints import CheckpointError, cached, fetch_description
from pipeline.inputs.tokenizer_facts import TokenizerFacts, remembered
from rledit.bos import written_around
from rledit.reasoning import switches

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_tokenizer(checkpoint: str, folder: Path) -> Any:
    """The tokenizer in the folder of a checkpoint.

    Args:
        checkpoint: Its name in the grid, for messages.
        folder: Where it lies.

    Raises:
        CheckpointError: There is none, or it cannot be read; names the file where one is at fault.
    """
    if not _present(folder):
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: it has no tokenizer ({', '.join(_FILES[:3])}); fetch the "
            "whole checkpoint, or put its tokenizer's files into the folder"
        )
    for name in _FILES[:2]:
        if (folder / name).is_file():
            _require_json(folder / name)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a library of another language reads it, whose errors have no kind
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: its tokenizer cannot be loaded ({error}); fetch "
            "tokenizer.json and tokenizer_config.json again"
        ) from None


def tokenizer_in(folder: Path) -> Any:
    """The tokenizer in the folder of a prepared model.

    The cells that a worker edits one after another share it, as nobody changes a tokenizer.

    Raises:
        CheckpointError: See `load_tokenizer`.
    """
    return _read(folder, tuple(_version(file) for file in sorted(folder.iterdir())))


@lru_cache(maxsize=1)
def _read(folder: Path, _: tuple[tuple[int, int] | None, ...]) -> Any:
    return load_tokenizer(str(folder), folder)


def writes_bos(checkpoint: str) -> bool | None:
    """Whether a checkpoint's tokenizer begins plain text with BOS; None where it has no tokenizer.

    Raises:
        CheckpointError: The checkpoint cannot be had, or its tokenizer cannot be read.
    """
    found = _facts(checkpoint)
    return None if found is None else found.writes_bos


def thinking_switches(checkpoint: str) -> dict[str, Any]:
    """The variables by which its chat template leaves the thinking out; see `rledit.reasoning`.

    Raises:
        CheckpointError: See `writes_bos`.
    """
    found = _facts(checkpoint)
    return {} if found is None else dict(found.switches)


def _facts(checkpoint: str) -> TokenizerFacts | None:
    folder = cached(checkpoint)
    if folder is None or not _present(folder):
        folder = fetch_description(checkpoint)
    files = [folder / name for name in (*_FILES, "chat_template.jinja")]
    versions = tuple(_version(file) for file in files)
    return _read_facts(checkpoint, str(folder), versions)


@lru_cache(maxsize=16)
def _read_facts(
    checkpoint: str, folder: str, _: tuple[tuple[int, int] | None, ...]
) -> TokenizerFacts | None:
    """None where there is no tokenizer."""

    def find() -> TokenizerFacts:
        tokenizer = load_tokenizer(checkpoint, Path(folder))
        template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
        bos = bool(written_around(tokenizer)[0])
        return TokenizerFacts(writes_bos=bos, switches=switches(template))

    return remembered(Path(folder), find) if _present(Path(folder)) else None


def _present(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)


def _version(file: Path) -> tuple[int, int] | None:
    """Tells a file from what it was before; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _require_json(file: Path) -> None:
    try:
        json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{file}: no valid JSON ({error}), so the tokenizer cannot be loaded; fetch the file "
            "again"
        ) from None
