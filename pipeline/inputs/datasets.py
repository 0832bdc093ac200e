"""Edit sources of a grid's datasets: the synthetic world or files, opened once per process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.config.grid import DatasetEntry, listed
from pipeline.inputs.edit_files import read_data
from rledit.control_tokens import SPELLINGS
from rledit.datasets import FileEditSource, ReadReport, RowError, RowErrors
from rledit.datasets.edits import joined
from rledit.facts import RealFacts
from rledit.records import SPLITS, EditSource, Probe, Split, asked, has_probe
from rledit.world import World, WorldConfig, render_schema
from rledit.writing_systems import space_between


def source_of(dataset: DatasetEntry, known: str = "") -> EditSource:
    """The edits of a dataset entry; the same object for equal entries.

    Args:
        dataset: The entry.
        known: Of real facts, the file that says which of them the unedited model knows.
    """
    if known:
        return _known_source(dataset.name, known)
    return _source(dataset.name, _entry(dataset))


def lacking(dataset: DatasetEntry, split: Split, probe: Probe) -> int:
    """How many edits of a pool bring no prompt of that kind; counted once for equal entries."""
    return _lacking(dataset.name, _entry(dataset), split, probe)


def unread(dataset: DatasetEntry) -> Mapping[str, Mapping[str, int]]:
    """Keys with content that nobody reads, with the rows that have them, by file of the dataset."""
    source = source_of(dataset)
    return source.unread if dataset.files and isinstance(source, FileEditSource) else {}


def pool_origin(dataset: DatasetEntry, split: Split) -> str:
    """How a pool of a dataset entry came about, for messages."""
    source = source_of(dataset)
    if dataset.files and isinstance(source, FileEditSource):
        return source.origin(split)
    if dataset.real_facts:
        return "real facts that the package ships"
    return "facts of the synthetic world"


def pool_remedy(dataset: DatasetEntry, split: Split) -> str:
    """What to do about a pool that holds too little."""
    if dataset.real_facts:
        return "give files of edits instead of real_facts"
    if not dataset.files:
        return "raise n_subjects of the world"
    if split in dataset.files:
        return "enlarge the file"
    if "all" in dataset.files:
        return f"give files.{split} a file of its own, or a larger share by shares.{split}"
    return f"give files.{split}, or files.all, which is cut into the pools that have no file"


def known_metadata(dataset: DatasetEntry, known: str) -> dict[str, Any]:
    """What results say of the real facts that a model knows; nothing of other data."""
    if not known:
        return {}
    source = source_of(dataset, known)
    assert isinstance(source, RealFacts)
    pools = {"pools": source.sizes(), "known": source.known_counts}
    return {"real_facts": pools | ({"unknowing": source.unknowing} if source.unknowing else {})}


def world_of(settings: Mapping[str, Any]) -> World:
    """The synthetic world of some settings; the same object for equal ones."""
    return _world(json.dumps(settings, sort_keys=True))


def answer_space_of(dataset: DatasetEntry, chat: bool) -> str | None:
    """The setting of spaces before answers, where it puts them otherwise than it always did.

    That is one before every answer to a bare prompt, and none in a chat; None where it is so still.
    """
    if chat:
        return "always" if dataset.answer_space == "always" else None
    if dataset.answer_space != "auto":
        return "never" if dataset.answer_space == "never" else None
    return "auto" if _texts(dataset.name, _entry(dataset))[0] else None


def spells_control(dataset: DatasetEntry) -> bool:
    """Whether a text of the data is spelt like a control token of some tokenizer."""
    return _texts(dataset.name, _entry(dataset))[1]


@lru_cache(maxsize=64)
def _texts(name: str, entry: str) -> tuple[bool, bool]:
    """Whether an answer has no space before it, and whether a text spells a control token.

    The synthetic world's texts are English words.
    """
    source = _source(name, entry)
    if not json.loads(entry)["files"]:
        return False, False
    sizes = source.sizes()
    pairs = [
        pair
        for split in SPLITS
        for edit in source.draw(split, sizes.get(split, 0), seed=0)
        for pair in asked(edit)
    ]
    spaceless = any(not space_between(prompt, answer) for prompt, answer in pairs)
    return spaceless, any(SPELLINGS.search(text) for pair in pairs for text in pair)


def _entry(dataset: DatasetEntry) -> str:
    # Not all of `asdict`, whose copies cost most of planning a large grid.
    values = {field.name: getattr(dataset, field.name) for field in fields(dataset)}
    return json.dumps(values, sort_keys=True, default=asdict)


@lru_cache(maxsize=8)
def _source(name: str, entry: str) -> EditSource:
    data = json.loads(entry)
    if data["real_facts"]:
        return RealFacts(name)
    if not data["files"]:
        world = world_of(data["world"])
        if data["schema"] is None:
            return world
        with TemporaryDirectory() as folder:
            files: Any = render_schema(world, data["schema"], Path(folder))
            return FileEditSource(**files, order=data["order"], name=name)
    reports: dict[str, Any] = {}
    errors: list[RowError] = []
    for split, given in data["files"].items():
        of_pool: list[ReadReport] = []
        for location in listed(given):
            try:
                of_pool.append(read_data(location, data["format"], data["strict"]))
            except RowErrors as error:
                errors += error.errors
        if of_pool:
            reports[split] = joined(of_pool)
    if errors:
        raise RowErrors(errors)
    return FileEditSource(
        **reports,
        order=data["order"],
        on_overlap=data["on_overlap"],
        shares=data["shares"] or None,
        name=name,
    )


@lru_cache(maxsize=8)
def _known_source(name: str, path: str) -> EditSource:
    return RealFacts(name).knowing(json.loads(Path(path).read_text())["known"])


@lru_cache(maxsize=64)
def _lacking(name: str, entry: str, split: Split, probe: Probe) -> int:
    source = _source(name, entry)
    edits = source.draw(split, source.sizes()[split], seed=0)
    return sum(not has_probe(edit, probe) for edit in edits)


@lru_cache(maxsize=8)
def _world(settings: str) -> World:
    return World(WorldConfig(**json.loads(settings)))
