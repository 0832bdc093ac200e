"""Cells of a grid: their specs with what these resolve to, by defaults, presets and the editor.

Nothing here reads a file but `Cell.source`: the rest follows from the grid and from the tables of
the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from pipeline.config.build import build
from pipeline.config.grid import EditorEntry, Grid, StreamEntry
from pipeline.config.presets import (
    PRESETS,
    Preset,
    Setting,
    mapped_modules,
    preset_setting,
    proxy_setting,
    taught,
)
from pipeline.config.yaml_location import Located
from pipeline.errors import ConfigError
from pipeline.inputs.corpus import REAL_FACTS
from pipeline.inputs.datasets import source_of, world_of
from pipeline.inputs.gguf_checkpoints import known_preset
from pipeline.plan.spec import CellSpec
from rledit.calibration import needs_calibration
from rledit.editors import editor_class
from rledit.editors.base import Need, Stopping, TrainableEditor
from rledit.instructions import Instruction, task_of
from rledit.records import EditSource
from rledit.world import WORLD_MODELS, World, WorldModelSpec


@dataclass(frozen=True, kw_only=True)
class Cell(CellSpec):
    """One cell of a grid, with the settings that its spec resolves to."""

    @cached_property
    def settings(self) -> Any:
        """The editor's complete configuration, defaults resolved.

        Raises:
            ConfigError: A setting does not exist or has no such value, or the editor cannot have
                batches of the stream's size.
        """
        cls = editor_class(self.editor.editor).Config
        given: dict[str, Any] = {**self._preset_settings()}
        if self.model.modules is not None:
            given["modules"] = self._mapped(self.model.modules)
        given |= self._own_settings()
        if self.editor.editor == "none":
            given["modules"] = ()
        if any(f.name == "seed" for f in fields(cls)):
            given.setdefault("seed", self.training_seed)
        if any(f.name == "task" for f in fields(cls)):
            given.setdefault("task", task_of(self.dataset.schema))
        settings: Any = build(cls, given, (), Located.of_data(given, f"editor {self.label}"))
        problem = editor_class(self.editor.editor).batch_problem(settings, self.stream.batch_size)
        if problem is not None:
            raise ConfigError(f"editor {self.label}, stream {self.stream_name}: {problem}")
        return settings

    @property
    def read_modules(self) -> tuple[str, ...]:
        """The linears whose lowest layer is where passes begin that are made again and again.

        They are those that are edited; in the unedited row those that its model's preset has RLEdit
        edit, whose cells ask an unedited model the same. None without a preset. They are not in
        the row's key: where it is read from shows in the last bits alone.
        """
        if self.editor.editor == "none":
            return tuple(self._preset_settings().get("modules", ()))
        edited: tuple[str, ...] = tuple(self.settings.modules)
        return edited

    def _preset_settings(self) -> Mapping[str, Any]:
        """The settings that the model's preset has for the editor and dataset."""
        return {} if self.preset_setting is None else self.preset_setting.values

    def _own_settings(self) -> dict[str, Any]:
        """The entry's own settings, its linear layers mapped where the model is a proxy model."""
        own = dict(self.editor.settings)
        if "modules" in own:
            own["modules"] = self._mapped(tuple(own["modules"]))
        return own

    def _mapped(self, modules: tuple[str, ...]) -> tuple[str, ...]:
        """Target modules that a grid names, in the layers of a preset's proxy where it is one."""
        if self.model.preset is None or self.scale == "full":
            return modules
        preset = PRESETS[self.model.preset]
        try:
            return mapped_modules(modules, preset.shape.layers, preset.family)
        except ValueError as error:
            raise ConfigError(f"editor {self.label}, model {self.model.name}: {error}") from None

    @cached_property
    def preset_setting(self) -> Setting | None:
        """What the model's preset says of the editor on this dataset; None without a preset."""
        if self.model.preset is None:
            return None
        cls = editor_class(self.editor.editor)
        find = preset_setting if self.scale == "full" else proxy_setting
        found = find(self.model.preset, cls.name, self.dataset.schema, cls.target_modules)
        # A preset may know more of an editor's kin than this one has.
        names = {f.name for f in fields(cls.Config)}
        return replace(found, values={k: v for k, v in found.values.items() if k in names})

    @property
    def published(self) -> Preset | None:
        """The preset whose own checkpoint the model is: the hub need not be asked what it is."""
        preset = None if self.model.preset is None else PRESETS[self.model.preset]
        if preset and preset.checkpoint == self.model.checkpoint:
            return preset
        known = known_preset(str(self.model.checkpoint))
        return None if known is None else PRESETS[known]

    @property
    def model_spec(self) -> WorldModelSpec:
        """Architecture and training of the model."""
        given = {**self.model.overrides, "chat": self.model.prompt_style == "chat"}
        if self.model.bos is not None:
            given["bos"] = self.model.bos
        spec = replace(WORLD_MODELS[self.model.world_model], **given)
        return spec if self.model.preset is None else taught(spec, self.dataset.world)

    @property
    def prompting(self) -> dict[str, Any]:
        """How prompts are put to the model, as `EditableModel` takes it.

        The tokenizer of a model that is trained on the spot is made to write BOS or not.
        """
        return {
            "prompt_style": self.model.prompt_style,
            "bos": None if self.model.checkpoint is None else self.model.bos,
            "answer_space": self.dataset.answer_space,
            "instruction": self.instruction,
        }

    @property
    def instruction(self) -> Instruction | None:
        """What edits' prompts are asked with, where the editor has something."""
        return editor_class(self.editor.editor).instruction_of(self.settings)

    @cached_property
    def needs(self) -> frozenset[Need]:
        """What the editor needs beside the edits of its batches."""
        return editor_class(self.editor.editor).needs_of(self.settings)

    @cached_property
    def calibrates(self) -> bool:
        """Whether the editor's step is found by calibration first."""
        return needs_calibration(editor_class(self.editor.editor), self.settings)

    @property
    def unseeded(self) -> Cell:
        """The cell with seed 0, for what all seeds share."""
        return replace(self, seed=0)

    @property
    def learns(self) -> bool:
        """Whether anything of the cell draws from the train pool."""
        return self.trains or "training_data" in self.needs

    @property
    def trains(self) -> bool:
        """Whether the editor has a network to train first."""
        return "train" in self.needs and self.settings.train_steps > 0

    @property
    def stopping(self) -> Stopping | None:
        """When the cell's training ends before its limit; None where it does not."""
        cls = editor_class(self.editor.editor)
        if not issubclass(cls, TrainableEditor) or not self.trains:
            return None
        return cls.stopping_of(self.settings)

    @property
    def training_seed(self) -> int:
        """Seed of the network and of what it is trained on: the editor's own, or the cell's.

        Where a grid gives its editor a `seed`, all seeds of the grid share one training.
        """
        own = self.editor.settings.get("seed", self.seed)
        return own if isinstance(own, int) else self.seed  # what is no integer is refused later

    @property
    def trajectory_batches(self) -> int:
        """Batches of a training trajectory."""
        longest = getattr(self.settings, "sequence_cap", None)  # of an editor that counts edits
        if longest is not None:
            return -(-int(longest) // self.stream.batch_size)
        return int(self.settings.trajectory_batches or self.stream.n_batches)

    @property
    def trained_batches(self) -> int:
        """Batches that training runs through before the stream, at most where it may end early.

        0 where nothing is trained.
        """
        if not self.trains:
            return 0
        steps = int(getattr(self.settings, "train_steps", 1))
        each = int(getattr(self.settings, "trajectories_per_step", 1))
        return steps * each * self.trajectory_batches

    @property
    def corpus(self) -> str | None:
        """The corpus of the cell's key covariance: the grid's, or the sentences of the shipped real
        facts for a checkpoint that is edited with these; None: the text of the synthetic world."""
        own = self.statistics.corpus
        shipped = self.dataset.real_facts and self.model.checkpoint is not None
        return REAL_FACTS if own is None and shipped else own

    def source(self) -> EditSource:
        """Opens the data that the cell's edits come from, once per process."""
        return source_of(self.dataset, self.known)

    def world(self) -> World:
        """Makes the synthetic world that the cell's model is trained on, once per process."""
        return world_of(self.dataset.world)


def cells_of(grid: Grid) -> list[Cell]:
    """All cells of a grid, streams and seeds outermost so that early results span the editors.

    Where the grid shares prefixes, an editor that is safe to share has one cell per batch size.
    """
    return [
        Cell(
            grid=grid.name,
            scale=grid.scale,
            model=model,
            dataset=dataset,
            editor=editor,
            stream=stream,
            seed=seed,
            protocols=dataset.protocols or grid.protocols,
            checkpoints=grid.checkpoints,
            also_after=_shorter(grid, stream, editor),
            probes=grid.probes,
            scored_edits=grid.scored_edits,
            threads=grid.threads,
            statistics=grid.statistics,
            measurements=grid.measurements,
            material=grid.material,
            resources=grid.resources,
            keep_edited=grid.keep_edited,
            answers=grid.answers,
            wild=grid.wild,
        )
        for seed in grid.seeds
        for model in grid.models
        for dataset in grid.datasets
        for stream in grid.streams
        for editor in grid.editors
        if not _answered(grid, stream, editor)
    ]


def _shares(grid: Grid, editor: EditorEntry) -> bool:
    # Of a sample of the longest stream, few edits lie in a shorter one.
    whole = grid.share_prefixes and grid.scored_edits is None
    return whole and editor_class(editor.editor).prefix_safe


def _shorter(grid: Grid, stream: StreamEntry, editor: EditorEntry) -> tuple[int, ...]:
    """Lengths of the streams that a cell of this stream answers for."""
    if not _shares(grid, editor):
        return ()
    alike = (s.n_batches for s in grid.streams if s.batch_size == stream.batch_size)
    return tuple(sorted({n for n in alike if n < stream.n_batches}))


def _answered(grid: Grid, stream: StreamEntry, editor: EditorEntry) -> bool:
    """Whether a longer stream's cell answers for this one."""
    return _shares(grid, editor) and any(
        other.batch_size == stream.batch_size and other.n_batches > stream.n_batches
        for other in grid.streams
    )
