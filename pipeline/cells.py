"""Cells: one editor on one model, dataset, stream and seed, with the key of its identity.

A cell's identity is what changes its numbers; where and how it runs is not part of it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pipeline.config import (
    DatasetEntry,
    EditorEntry,
    Grid,
    ModelEntry,
    StatisticsEntry,
    StreamEntry,
    build,
)
from pipeline.corpus import open_corpus
from pipeline.results.records import CellAddress
from pipeline.yaml_location import ConfigError, Located
from rledit.datasets import FileEditSource
from rledit.editors import editor_class
from rledit.editors.base import Need
from rledit.records import EditSource
from rledit.world import WORLD_MODELS, World, WorldConfig, WorldModelSpec

KEY_VERSION = 1
_ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a grid."""

    grid: str
    scale: str
    model: ModelEntry
    dataset: DatasetEntry
    editor: EditorEntry
    stream: StreamEntry
    seed: int
    protocols: tuple[str, ...]
    checkpoints: int
    probes: str
    threads: int
    statistics: StatisticsEntry

    @property
    def n_edits(self) -> int:
        """Edits in the stream."""
        return self.stream.n_batches * self.stream.batch_size

    @cached_property
    def settings(self) -> Any:
        """The editor's complete configuration, defaults resolved."""
        cls = editor_class(self.editor.editor).Config
        given: dict[str, Any] = {"modules": self.model.modules} | self.editor.settings
        if self.editor.editor == "none":
            given["modules"] = ()
        if any(f.name == "seed" for f in fields(cls)):
            given.setdefault("seed", self.seed)
        return build(cls, given, (), Located("{}", f"editor {self.label}"))

    @property
    def editor_name(self) -> str:
        """The editor's name in tables and paths."""
        return editor_class(self.editor.editor).name

    @property
    def label(self) -> str:
        """The editor and its variant, as tables name it."""
        return self.editor_name + (f"/{self.editor.variant}" if self.editor.variant else "")

    @property
    def path(self) -> str:
        """The cell's human name."""
        stream = f"{self.stream.n_batches}x{self.stream.batch_size}"
        return "/".join(
            [self.grid, self.model.name, self.dataset.name, self.label, stream, f"seed{self.seed}"]
        )

    @property
    def model_spec(self) -> WorldModelSpec:
        """Architecture and training of the model."""
        return replace(WORLD_MODELS[self.model.world_model], **self.model.overrides)

    @cached_property
    def needs(self) -> frozenset[Need]:
        """What the editor needs beside the edits of its batches."""
        return editor_class(self.editor.editor).needs_of(self.settings)

    @property
    def trains(self) -> bool:
        """Whether the editor has a network to train first."""
        return "train" in self.needs and self.settings.train_steps > 0

    @cached_property
    def corpus_hash(self) -> str:
        """Content hash of the corpus, with how it is cut into tokens."""
        entry = self.statistics
        corpus = open_corpus(
            entry.corpus, entry.documents, None if self.model.checkpoint else self.world()
        )
        content = {"content": corpus.content_hash, "max_tokens": entry.max_tokens}
        return digest(content)

    @cached_property
    def statistics_key(self) -> str:
        """Hash of what the second moments depend on: cells that agree in it share them."""
        return digest(
            {
                "model": self.identity["model"],
                "data_hash": self.identity["dataset"]["data_hash"],
                "modules": list(self.settings.modules),
                "threads": self.threads,
                **self._statistics_identity(),
            }
        )

    def _statistics_identity(self) -> dict[str, Any]:
        entry = asdict(self.statistics)
        return {"corpus_hash": self.corpus_hash, "dtype": entry["dtype"], "shards": entry["shards"]}

    @property
    def trajectory_batches(self) -> int:
        """Batches of a training trajectory."""
        return int(self.settings.trajectory_batches or self.stream.n_batches)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that changes the cell's numbers, as plain JSON."""
        return _plain(
            {
                "key_version": KEY_VERSION,
                "grid": self.grid,
                "model": {"name": self.model.name, "scale": self.scale, **self._model_identity()},
                "dataset": {
                    "name": self.dataset.name,
                    "split": self.dataset.split,
                    "order": self.dataset.order,
                    "data_hash": self.source().data_hash,
                },
                "editor": self.editor_name,
                **self._foreign_source(),
                "variant": self.editor.variant,
                "settings": asdict(self.settings),
                "stream": asdict(self.stream),
                "seed": self.seed,
                "protocols": list(self.protocols),
                "checkpoints": self.checkpoints,
                "probes": self.probes,
                "threads": self.threads,
                **({"statistics": self._statistics_identity()} if self._uses_statistics else {}),
            }
        )

    def _foreign_source(self) -> dict[str, str]:
        """What tells versions of an editor apart that this project's version does not cover."""
        if ":" not in self.editor.editor:
            return {}
        text = inspect.getsource(sys.modules[editor_class(self.editor.editor).__module__])
        return {"editor_source": hashlib.sha256(text.encode()).hexdigest()[:16]}

    @property
    def _uses_statistics(self) -> bool:
        return "statistics" in self.needs

    @cached_property
    def key(self) -> str:
        """Hash of the identity."""
        return digest(self.identity)

    @cached_property
    def train_key(self) -> str:
        """Hash of what the trained network depends on: cells that agree in it share it."""
        kept = ("key_version", "model", "dataset", "editor", "editor_source", "settings", "seed")
        names = [name for name in (*kept, "threads") if name in self.identity]
        identity = {name: self.identity[name] for name in names}
        # Training draws from the train pool only, whatever the stream is drawn from.
        identity["dataset"] = {k: v for k, v in identity["dataset"].items() if k != "split"}
        batch = self.stream.batch_size
        return digest(identity | {"trajectory": [self.trajectory_batches, batch]})

    @property
    def address(self) -> CellAddress:
        """The columns that name this cell in the lake."""
        return CellAddress(
            cell_key=self.key,
            grid=self.grid,
            editor=self.editor_name,
            variant=self.editor.variant,
            model=self.model.name,
            dataset=self.dataset.name,
            scale=self.scale,
            seed=self.seed,
            batch_size=self.stream.batch_size,
            n_batches=self.stream.n_batches,
        )

    def source(self) -> EditSource:
        """The data the cell's edits come from."""
        return _source(self.dataset.name, json.dumps(asdict(self.dataset), sort_keys=True))

    def world(self) -> World:
        """The embedded world the cell's model is trained on."""
        return _world(json.dumps(self.dataset.world, sort_keys=True))

    def _model_identity(self) -> dict[str, Any]:
        if self.model.checkpoint is not None:
            return {
                "checkpoint": checkpoint_identity(self.model.checkpoint),
                "dtype": self.model.dtype,
            }
        return {**asdict(self.model_spec), "world_hash": self.world().data_hash}


def cells_of(grid: Grid) -> list[Cell]:
    """All cells of a grid, streams and seeds outermost so that early results span the editors."""
    return [
        Cell(
            grid=grid.name,
            scale=grid.scale,
            model=model,
            dataset=dataset,
            editor=editor,
            stream=stream,
            seed=seed,
            protocols=grid.protocols,
            checkpoints=grid.checkpoints,
            probes=grid.probes,
            threads=grid.threads,
            statistics=grid.statistics,
        )
        for seed in grid.seeds
        for model in grid.models
        for dataset in grid.datasets
        for stream in grid.streams
        for editor in grid.editors
    ]


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


@lru_cache(maxsize=8)
def _source(name: str, entry: str) -> EditSource:
    data = json.loads(entry)
    if not data["files"]:
        return _world(json.dumps(data["world"], sort_keys=True))
    return FileEditSource(
        **data["files"],
        format=data["format"],
        order=data["order"],
        on_overlap=data["on_overlap"],
        strict=data["strict"],
        name=name,
    )


@lru_cache(maxsize=8)
def _world(settings: str) -> World:
    return World(WorldConfig(**json.loads(settings)))


def _plain(value: Any) -> Any:
    """The value as it reads back from JSON."""
    return json.loads(json.dumps(value))
