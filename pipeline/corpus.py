"""Texts for second moments: the embedded world's own, a file, or a file of a hub dataset."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.yaml_location import ConfigError
from rledit.world import World

_HUB = re.compile(r"^hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)/(?P<file>.+)$")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents in order, with the hash of their content."""

    documents: tuple[str, ...]
    content_hash: str


def open_corpus(location: str | None, limit: int, world: World | None) -> Corpus:
    """The first `limit` documents of a corpus.

    Args:
        location: None for the embedded world's text; a ``.txt`` file (a document a line) or a
            ``.jsonl`` file (a document in ``text``); or
            ``hf://datasets/owner/name@revision/file.jsonl``.
        limit: Number of documents.
        world: The embedded world, if the cell has one.

    Raises:
        ConfigError: The corpus cannot be read; names the file and the line.
    """
    if location is None:
        if world is None:
            raise ConfigError(
                "statistics.corpus: without an embedded world a corpus file is needed, e.g. "
                "statistics: {corpus: wiki.jsonl}"
            )
        documents = tuple(_world_text(world))[:limit]
    else:
        path = _download(location) if location.startswith("hf://") else Path(location)
        documents = tuple(_first(_read(path), limit))
    if not documents:
        raise ConfigError(f"statistics.corpus {location!r}: there is no document in it")
    joined = "\0".join(documents).encode()
    return Corpus(documents=documents, content_hash=hashlib.sha256(joined).hexdigest())


def _world_text(world: World) -> Iterator[str]:
    """Every fact as the model was taught it, one template of all facts after the other."""
    for template in range(len(world.facts[0].trained)):
        for fact in world.facts:
            yield f"{fact.trained[template]} {fact.answer}"


def _first(documents: Iterator[str], limit: int) -> Iterator[str]:
    for _, document in zip(range(limit), documents, strict=False):
        yield document


def _read(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise ConfigError(f"statistics.corpus: no file at {path}")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if path.suffix != ".jsonl":
                yield line.strip()
                continue
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise ConfigError(
                    f"{path}:{number}: expected a JSON object with the key 'text'"
                ) from None
            yield str(text)


def _download(location: str) -> Path:
    match = _HUB.match(location)
    if match is None:
        raise ConfigError(
            f"statistics.corpus {location!r}: expected "
            "hf://datasets/owner/name@revision/file, with a pinned revision"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            hf_hub_download(
                match["repo"], match["file"], repo_type="dataset", revision=match["revision"]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"statistics.corpus {location!r} cannot be fetched ({type(error).__name__}); check "
            "repository, revision and HF_TOKEN, or give a local file"
        ) from None
