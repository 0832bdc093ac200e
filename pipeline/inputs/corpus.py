"""Corpora for key covariance: the synthetic world's text, sentences of the shipped real facts, a
file, or a file on the hub."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.inputs.edit_files import hub_file
from pipeline.inputs.text_files import texts_of
from rledit.datasets.errors import DatasetError
from rledit.facts import sentences
from rledit.world import World

logger = logging.getLogger(__name__)

REAL_FACTS = "real_facts"
"""The corpus of sentences that the package ships, by the name that a grid has for it."""

_SAMPLE = 1000  # documents whose length is kept, at least, where there are so many


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents in order, with the hash of their content."""

    documents: tuple[str, ...]
    content_hash: str


@dataclass(frozen=True, kw_only=True)
class CorpusMetadata:
    """What there is to say of a corpus.

    Attributes:
        content_hash: Hash of its content.
        documents: How many it has.
        sample: UTF-8 bytes of some of its documents, evenly spread over it.
    """

    content_hash: str
    documents: int
    sample: tuple[int, ...]


def open_corpus(
    location: str | None, limit: int, world: World | None, setting: str = "covariance.corpus"
) -> Corpus:
    """The first `limit` documents of a corpus, or as many as it has.

    Args:
        location: None for the synthetic world's text; `REAL_FACTS` for the sentences of the
            shipped real facts (`rledit.facts.sentences`); a file as in
            `pipeline.inputs.text_files`: ``.txt`` (a document a line), ``.jsonl`` or Parquet (a
            document in ``text``); or ``hf://datasets/owner/name@revision/file``.
        limit: Number of documents.
        world: The synthetic world, if the cell has one.
        setting: What the grid calls the location, for messages.

    Raises:
        ConfigError: The corpus cannot be read; names the file and the row.
    """
    if location is None:
        if world is None:
            raise ConfigError(
                f"{setting}: without a synthetic world a corpus file is needed, e.g. "
                "covariance: {corpus: wiki.jsonl}"
            )
        documents = tuple(_world_text(world))[:limit]
    elif location == REAL_FACTS:
        documents = sentences()[:limit]
    else:
        try:
            path = hub_file(location) if location.startswith("hf://") else Path(location)
            documents = tuple(_first(texts_of(path), limit))
        except DatasetError as error:
            raise ConfigError(f"{setting}: {error}") from None
    if not documents:
        raise ConfigError(f"{setting} {location!r}: there is no document in it")
    joined = "\0".join(documents).encode()
    return Corpus(documents=documents, content_hash=hashlib.sha256(joined).hexdigest())


def corpus_metadata(location: str | None, limit: int, world: World | None) -> CorpusMetadata:
    """What there is to say of a corpus, without keeping it; a file is read once a process.

    A file that is shorter than what was asked for is used as it is, and says so.
    """
    if location is None or location == REAL_FACTS:
        return _metadata(open_corpus(location, limit, world))
    return _file_metadata(location, limit, file_version(location))


@lru_cache(maxsize=8)
def _file_metadata(location: str, limit: int, _: tuple[int, int] | None) -> CorpusMetadata:
    found = _metadata(open_corpus(location, limit, None))
    warn_if_short("covariance.corpus", location, found.documents, limit)
    return found


def _metadata(corpus: Corpus) -> CorpusMetadata:
    step = max(1, len(corpus.documents) // _SAMPLE)
    return CorpusMetadata(
        content_hash=corpus.content_hash,
        documents=len(corpus.documents),
        sample=tuple(len(text.encode()) for text in corpus.documents[::step]),
    )


def warn_if_short(setting: str, location: str, found: int, asked: int) -> None:
    """Say that a file holds fewer documents than were asked for."""
    if found < asked:
        logger.warning(
            "%s: %s holds %d documents, not the %d that were asked for; all of them are used, and "
            "the results say how many",
            setting,
            location,
            found,
            asked,
        )


def file_version(path: str | Path) -> tuple[int, int] | None:
    """Tells a file from what it was before, for caches; None where there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None  # opening it says what is wrong
    return found.st_mtime_ns, found.st_size


def _world_text(world: World) -> Iterator[str]:
    """Every fact as the model was taught it, one template of all facts after the other."""
    for template in range(len(world.facts[0].trained)):
        for fact in world.facts:
            yield f"{fact.trained[template]} {fact.answer}"


def _first(documents: Iterator[str], limit: int) -> Iterator[str]:
    for _, document in zip(range(limit), documents, strict=False):
        yield document
