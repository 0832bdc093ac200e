"""Where a dataset entry's edits come from: the embedded world, or files. Opened once a process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.config import DatasetEntry
from pipeline.data_files import read_data
from rledit.datasets import FileEditSource
from rledit.records import EditSource, Probe, Split, has_probe
from rledit.world import World, WorldConfig, render_schema


def source_of(dataset: DatasetEntry) -> EditSource:
    """The edits of a dataset entry; the same object for equal entries."""
    return _source(dataset.name, json.dumps(asdict(dataset), sort_keys=True))


def lacking(dataset: DatasetEntry, split: Split, probe: Probe) -> int:
    """How many edits of a pool bring no prompt of that kind; counted once for equal entries."""
    return _lacking(dataset.name, json.dumps(asdict(dataset), sort_keys=True), split, probe)


def pool_origin(dataset: DatasetEntry, split: Split) -> str:
    """How a pool of a dataset entry came about, for messages."""
    source = source_of(dataset)
    if dataset.files and isinstance(source, FileEditSource):
        return source.origin(split)
    return "facts of the embedded world"


def pool_remedy(dataset: DatasetEntry, split: Split) -> str:
    """What to do about a pool that holds too little."""
    if not dataset.files:
        return "raise n_subjects of the world"
    if split in dataset.files:
        return "enlarge the file"
    if "all" in dataset.files:
        return f"give files.{split} a file of its own, or a larger share by shares.{split}"
    return f"give files.{split}, or files.all, which is cut into the pools that have no file"


def world_of(settings: Mapping[str, Any]) -> World:
    """The embedded world of some settings; the same object for equal ones."""
    return _world(json.dumps(settings, sort_keys=True))


@lru_cache(maxsize=8)
def _source(name: str, entry: str) -> EditSource:
    data = json.loads(entry)
    if not data["files"]:
        world = world_of(data["world"])
        if data["schema"] is None:
            return world
        with TemporaryDirectory() as folder:
            files: Any = render_schema(world, data["schema"], Path(folder))
            return FileEditSource(**files, order=data["order"], name=name)
    reports: dict[str, Any] = {
        split: read_data(location, data["format"], data["strict"])
        for split, location in data["files"].items()
    }
    return FileEditSource(
        **reports,
        order=data["order"],
        on_overlap=data["on_overlap"],
        shares=data["shares"] or None,
        name=name,
    )


@lru_cache(maxsize=64)
def _lacking(name: str, entry: str, split: Split, probe: Probe) -> int:
    source = _source(name, entry)
    edits = source.draw(split, source.sizes()[split], seed=0)
    return sum(not has_probe(edit, probe) for edit in edits)


@lru_cache(maxsize=8)
def _world(settings: str) -> World:
    return World(WorldConfig(**json.loads(settings)))
