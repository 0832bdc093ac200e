"""Cells: one editor on one model, dataset, stream and seed, with the key of its identity.

A cell's identity is what changes its numbers; where and how it runs is not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

from pipeline.config import DatasetEntry, EditorEntry, Grid, ModelEntry, StreamEntry, build
from pipeline.results.records import CellAddress
from pipeline.yaml_location import Located
from rledit.editors import TrainableEditor, editor_class
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
    def label(self) -> str:
        """The editor and its variant, as tables name it."""
        return self.editor.editor + (f"/{self.editor.variant}" if self.editor.variant else "")

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

    @property
    def trains(self) -> bool:
        """Whether the editor has a network to train first."""
        cls = editor_class(self.editor.editor)
        return issubclass(cls, TrainableEditor) and self.settings.train_steps > 0

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
                "model": {"name": self.model.name, "scale": self.scale, **asdict(self.model_spec)},
                "dataset": {
                    "name": self.dataset.name,
                    "split": self.dataset.split,
                    "data_hash": self.source().data_hash,
                },
                "editor": self.editor.editor,
                "variant": self.editor.variant,
                "settings": asdict(self.settings),
                "stream": asdict(self.stream),
                "seed": self.seed,
                "protocols": list(self.protocols),
                "checkpoints": self.checkpoints,
                "probes": self.probes,
                "threads": self.threads,
            }
        )

    @cached_property
    def key(self) -> str:
        """Hash of the identity."""
        return digest(self.identity)

    @cached_property
    def train_key(self) -> str:
        """Hash of what the trained network depends on: cells that agree in it share it."""
        kept = ("key_version", "model", "dataset", "editor", "settings", "seed", "threads")
        identity = {name: self.identity[name] for name in kept}
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
            editor=self.editor.editor,
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
        return _world(json.dumps(self.dataset.world, sort_keys=True))


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


@lru_cache(maxsize=8)
def _world(settings: str) -> World:
    return World(WorldConfig(**json.loads(settings)))


def _plain(value: Any) -> Any:
    """The value as it reads back from JSON."""
    return json.loads(json.dumps(value))
