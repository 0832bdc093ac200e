"""Remembers on disk what a plan has to know of a tokenizer, so that it is not loaded each time.

To load a tokenizer imports transformers and takes seconds, and what is asked of it (does it write
BOS, by what does its template leave thinking out) depends on its files alone. The answers lie below
the user's cache folder, under the hash of all small files of the checkpoint's folder, of the
libraries that read them and of the code that asks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rledit
from pipeline.inputs.file_hashes import cache_home, sha256_of, write_note

_LIBRARIES = ("transformers", "tokenizers")
_CODE = ("bos.py", "control_tokens.py", "reasoning.py")
# What tokenizers are made of: vocabularies, merges, templates, and what their class is chosen by.
_KINDS = (".json", ".jinja", ".model", ".py", ".tiktoken", ".txt")
_WEIGHTS = ".index.json"


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """What a plan has to know of a tokenizer.

    Attributes:
        writes_bos: Whether it begins plain text with BOS.
        switches: The variables by which its chat template leaves the thinking out.
    """

    writes_bos: bool
    switches: dict[str, Any]


def remembered(folder: Path, find: Callable[[], TokenizerFacts]) -> TokenizerFacts:
    """The facts of the tokenizer in a folder: noted before, or found now and noted.

    Args:
        folder: The checkpoint's folder.
        find: Loads the tokenizer and asks it; what it raises is passed on, and nothing is noted.
    """
    key = _key(folder)
    note = cache_home() / "rledit" / "tokenizers" / f"{key[:32]}.json"
    if (known := _read(note, key)) is not None:
        return known
    found = find()
    written = {"key": key, **asdict(found)}
    if json.loads(json.dumps(written)) == written:
        write_note(note, written, "tokenizers are loaded again by every command")
    return found


def _key(folder: Path) -> str:
    """The hash of everything that the facts depend on."""
    code = Path(rledit.__file__).parent
    parts = [f"{name} {version(name)}" for name in _LIBRARIES]
    parts += [f"{name} {sha256_of(code / name)}" for name in _CODE]
    parts += [f"{file.relative_to(folder)} {sha256_of(file)}" for file in _files(folder)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    """All small files of a checkpoint, templates in folders of their own among them."""
    every = (*folder.glob("*"), *folder.glob("*/*.jinja"))
    return sorted(f for f in every if f.suffix in _KINDS and not f.name.endswith(_WEIGHTS))


def _read(note: Path, key: str) -> TokenizerFacts | None:
    try:
        noted = json.loads(note.read_bytes())
        same = noted["key"] == key
        bos, switches = noted["writes_bos"], noted["switches"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not noted, or no note: the tokenizer is asked
    if not (same and isinstance(bos, bool) and isinstance(switches, dict)):
        return None
    return TokenizerFacts(writes_bos=bos, switches=switches)
