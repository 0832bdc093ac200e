"""Cells: one editor on one model, dataset, stream and seed, with the key of its identity.

A cell's identity is what changes its numbers; where and how it runs is not part of it.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from pipeline.config.grid import (
    AnswersEntry,
    CovarianceEntry,
    DatasetEntry,
    EditorEntry,
    EvalDataEntry,
    Grid,
    ModelEntry,
    StreamEntry,
)
from pipeline.config.parse import build
from pipeline.config.presets import (
    PRESETS,
    Preset,
    Setting,
    mapped_modules,
    preset_setting,
    proxy_setting,
    taught,
)
from pipeline.config.resources import ResourcesEntry
from pipeline.config.yaml_location import Located
from pipeline.errors import ConfigError
from pipeline.inputs.checkpoints import cached, checkpoint_family, fetch_description, read_config
from pipeline.inputs.corpus import CorpusMetadata, corpus_metadata
from pipeline.inputs.datasets import (
    answer_space_of,
    lacking,
    pool_origin,
    pool_remedy,
    source_of,
    spells_control,
    world_of,
)
from pipeline.inputs.eval_data import eval_data_hash, load_eval_data
from pipeline.inputs.fingerprints import (
    checkpoint_fingerprint,
    fingerprint,
    plain,
    template_fingerprint,
)
from pipeline.inputs.model_loading import weight_facts
from pipeline.inputs.quantised_weights import Quantised, quantised
from pipeline.inputs.tokenizer_files import thinking_switches, writes_bos
from pipeline.results.lake.records import CellAddress, scale_of
from rledit.calibration import FEWEST_EDITS, LEAST_EDITS, RULE, needs_calibration, shift_settings
from rledit.datasets import FileEditSource
from rledit.datasets.errors import SHOWN_ROWS
from rledit.editors import editor_class
from rledit.editors.base import Need
from rledit.measurements import EvalData, not_measured
from rledit.metrics import protocol
from rledit.records import EditSource, Probe, Split, has_probe
from rledit.stream import checkpoints
from rledit.world import BOS_FAMILIES, WORLD_MODELS, World, WorldModelSpec

KEY_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a grid.

    Attributes:
        also_after: Batches of the stream after which it is scored as well, because a shorter
            stream of the grid ends there.
    """

    grid: str
    scale: str
    model: ModelEntry
    dataset: DatasetEntry
    editor: EditorEntry
    stream: StreamEntry
    seed: int
    protocols: tuple[str, ...]
    checkpoints: int
    also_after: tuple[int, ...] = ()
    probes: str
    threads: int
    statistics: CovarianceEntry
    measurements: tuple[str, ...] = ()
    material: EvalDataEntry = field(default_factory=EvalDataEntry)
    resources: ResourcesEntry = field(default_factory=ResourcesEntry)
    keep_edited: bool = False
    answers: AnswersEntry = field(default_factory=AnswersEntry)

    @property
    def n_edits(self) -> int:
        """Edits in the stream."""
        return self.stream.n_batches * self.stream.batch_size

    @cached_property
    def settings(self) -> Any:
        """The editor's complete configuration, defaults resolved."""
        cls = editor_class(self.editor.editor).Config
        given: dict[str, Any] = {"modules": self.model.modules, **self._preset_settings()}
        given |= self._own_settings()
        if self.editor.editor == "none":
            given["modules"] = ()
        if any(f.name == "seed" for f in fields(cls)):
            given.setdefault("seed", self.seed)
        settings: Any = build(cls, given, (), Located.of_data(given, f"editor {self.label}"))
        problem = editor_class(self.editor.editor).batch_problem(settings, self.stream.batch_size)
        if problem is not None:
            raise ConfigError(f"editor {self.label}, stream {self._stream_name}: {problem}")
        return settings

    @property
    def _stream_name(self) -> str:
        return f"{self.stream.n_batches}x{self.stream.batch_size}"

    def _preset_settings(self) -> Mapping[str, Any]:
        """The settings that the model's preset has for the editor and dataset."""
        return {} if self.preset_setting is None else self.preset_setting.values

    def _own_settings(self) -> dict[str, Any]:
        """The entry's own settings, its linear layers mapped where the model is a proxy model."""
        own = dict(self.editor.settings)
        if self.model.preset is not None and self.scale != "full" and "modules" in own:
            preset = PRESETS[self.model.preset]
            depth, family = preset.shape.layers, preset.family
            own["modules"] = mapped_modules(tuple(own["modules"]), depth, family)
        return own

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
    def points(self) -> tuple[int, ...]:
        """Batches of the stream after which everything edited so far is scored."""
        own = checkpoints(self.stream.n_batches, self.checkpoints)
        return tuple(sorted({*own, *self.also_after}))

    @property
    def metadata(self) -> dict[str, Any]:
        """What results should say of a cell beside its identity."""
        found: dict[str, Any] = {}
        if self.preset_setting is not None:
            found["preset"] = {"name": self.model.preset, "settings": self.preset_setting.origin}
        if isinstance(source := self.source(), FileEditSource):
            found["data_files"] = dict(source.file_hashes)
        if self.not_measured:
            found["not_measured"] = self.not_measured
        if self.model.checkpoint is not None and (known := weight_facts(self.model.checkpoint)):
            found["weights"] = known
        return found

    @cached_property
    def not_measured(self) -> dict[str, str]:
        """What the grid asks for and the stream's edits have nothing for → why."""
        n = min(self.n_edits, self._available)  # fewer, where the data is too short to run
        edits = self.source().draw(self.dataset.split, n, seed=self.seed)
        return not_measured(edits, [protocol(name) for name in self.protocols], self.measurements)

    @cached_property
    def quantised(self) -> Quantised | None:
        """How the checkpoint's weights are packed; None where they are plain, or there is none."""
        checkpoint = self.model.checkpoint
        published = PRESETS[self.model.preset] if self.model.preset is not None else None
        # The hub need not be asked what a published model is.
        if checkpoint is None or (published is not None and published.checkpoint == checkpoint):
            return None
        return quantised(read_config(cached(checkpoint) or fetch_description(checkpoint)))

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
        parts = [self.grid, self.model.name, self.dataset.name, self.label, self._stream_name]
        return "/".join([*parts, f"seed{self.seed}"])

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
        }

    @cached_property
    def needs(self) -> frozenset[Need]:
        """What the editor needs beside the edits of its batches."""
        return editor_class(self.editor.editor).needs_of(self.settings)

    @cached_property
    def insufficient_data(self) -> str | None:
        """Which pool holds too few edits for the stream or for a training trajectory."""
        sizes = self.source().sizes()
        wanted: dict[Split, int] = {self.dataset.split: self.n_edits}
        if self.trains:
            wanted["train"] = self.trajectory_batches * self.stream.batch_size
        for split, n in wanted.items():
            if sizes[split] < n:
                return (
                    f"needs {n} edits of the {split} pool, which has {sizes[split]} "
                    f"({pool_origin(self.dataset, split)})"
                )
        return None

    @property
    def _uncalibrated(self) -> str | None:
        """Why the step cannot be calibrated on the data's pools; None where it can."""
        cls, n, size = (
            editor_class(self.editor.editor),
            self.calibration_edits,
            self.stream.batch_size,
        )
        problem = cls.batch_problem(self.settings, n) if n else None
        if n >= min(size, FEWEST_EDITS) and problem is None:
            return None
        return (
            f"{cls.step_setting}: auto is calibrated on a batch of the validation pool, or of the "
            f"train pool where that is too small; they have {n} edits at most, too few for batches "
            f"of {size}; "
            f"{pool_remedy(self.dataset, 'validation')}, or give {self.label} a number as "
            f"{cls.step_setting}"
        )

    @cached_property
    def skip_reason(self) -> str | None:
        """Why the cell cannot be run on its data at all; None where it can."""
        if (
            self.scale == "full"
            and self.model.preset is not None
            and self.insufficient_data is not None
        ):
            return self.insufficient_data  # a published table runs as far as the data goes
        if self._untaught is not None:
            return self._untaught
        if self.calibrates and self._uncalibrated is not None:
            return self._uncalibrated
        if "subject" not in self.needs:
            return None
        # One edit mostly tells; where it has no subject, another may have one.
        for n in (min(self.n_edits, 1), min(self.n_edits, self._available)):
            edits = self.source().draw(self.dataset.split, n, seed=self.seed)
            if any(edit.subject is not None for edit in edits) or not edits:
                return None
        return f"{self.label} looks up subjects, and {self.dataset.name} gives none"

    @property
    def _available(self) -> int:
        return self.source().sizes()[self.dataset.split]

    @cached_property
    def _untaught(self) -> str | None:
        """What the editor learns from and the train pool lacks; None where it has all."""
        if not self.learns:
            return None
        if not self.source().sizes()["train"]:
            return (
                f"{self.label} learns from the train pool, and that of {self.dataset.name} is "
                f"empty ({pool_origin(self.dataset, 'train')}); "
                f"{pool_remedy(self.dataset, 'train')}, or leave the editor out"
            )
        lacks = [
            f"a {probe} of every training edit, and {self._without(probe, n)}"
            for probe in sorted(editor_class(self.editor.editor).trains_on_of(self.settings))
            if (n := lacking(self.dataset, "train", probe))
        ]
        if not lacks:
            return None
        return (
            f"{self.label} learns from {'; from '.join(lacks)}; give the dataset a train file "
            "whose edits have one, or leave the editor out"
        )

    def _without(self, probe: Probe, n: int) -> str:
        """How many training edits lack a probe; the first of them, where others have one."""
        total = self.source().sizes()["train"]
        text = (
            f"{n} of {total} in the train pool of {self.dataset.name} "
            f"({pool_origin(self.dataset, 'train')}) have none"
        )
        if n == total:
            return text
        pool = self.source().draw("train", total, seed=self.seed)
        places = [edit.source or edit.edit_id for edit in pool if not has_probe(edit, probe)]
        more = f" and {n - SHOWN_ROWS} more" if n > SHOWN_ROWS else ""
        return f"{text} ({', '.join(places[:SHOWN_ROWS])}{more})"

    @cached_property
    def calibrates(self) -> bool:
        """Whether the editor's step is found by calibration first."""
        return needs_calibration(editor_class(self.editor.editor), self.settings)

    @cached_property
    def calibration_edits(self) -> int:
        """Edits of the batch that the step is calibrated on."""
        wanted = max(self.stream.batch_size, LEAST_EDITS)
        return min(wanted, self.source().sizes()[self.calibration_pool])

    @cached_property
    def calibration_pool(self) -> Split:
        """Where that batch is from: the validation pool, or the train pool where that is too small.

        Never from the evaluation pool: what is chosen there must not be scored there.
        """
        sizes = self.source().sizes()
        enough = min(self.stream.batch_size, FEWEST_EDITS)
        small = sizes["validation"] < enough and sizes["train"] > sizes["validation"]
        return "train" if small else "validation"

    @cached_property
    def calibration_key(self) -> str:
        """Hash of what the calibrated step depends on: cells that agree in it share it.

        The batch is drawn with seed 0, whatever the cell's seed, so that seeds share their step.
        """
        cls = editor_class(self.editor.editor)
        model = {k: v for k, v in self.identity["model"].items() if k not in ("name", "scale")}
        dataset = {name: self.identity["dataset"][name] for name in ("order", "data_hash")}
        return fingerprint(
            plain(
                {
                    "key_version": KEY_VERSION,
                    "model": model,
                    "dataset": dataset,
                    "settings": shift_settings(cls, self.unseeded.settings),
                    "threads": self.threads,
                    **self._foreign_source(),
                    **self._calibration(),
                }
            )
        )

    @property
    def unseeded(self) -> Cell:
        """The cell with seed 0, for what all seeds share."""
        return replace(self, seed=0)

    def _calibration(self) -> dict[str, Any]:
        """How the step is calibrated, where it is."""
        if not self.calibrates:
            return {}
        pool = {} if self.calibration_pool == "validation" else {"pool": self.calibration_pool}
        return {"calibration": {"rule": RULE, "edits": self.calibration_edits, **pool}}

    @property
    def learns(self) -> bool:
        """Whether anything of the cell draws from the train pool."""
        return self.trains or "training_data" in self.needs

    @property
    def trains(self) -> bool:
        """Whether the editor has a network to train first."""
        return "train" in self.needs and self.settings.train_steps > 0

    @cached_property
    def corpus_hash(self) -> str:
        """Content hash of the corpus, with how it is cut into tokens."""
        content, most = self._corpus.content_hash, self.statistics.max_tokens
        return fingerprint({"content": content, "max_tokens": most, **self._unusual_bos()})

    @property
    def corpus_documents(self) -> int:
        """Documents that the key covariance is of."""
        return self._corpus.documents

    @property
    def corpus_sample(self) -> tuple[int, ...]:
        """UTF-8 bytes of some of these documents."""
        return self._corpus.sample

    @cached_property
    def _corpus(self) -> CorpusMetadata:
        entry = self.statistics
        return corpus_metadata(entry.corpus, entry.documents, self._own_world())

    @cached_property
    def covariance_key(self) -> str:
        """Hash of what key covariance depend on, whichever linear layers they are of.

        Cells that agree in it share them: editors, streams and datasets do not matter.
        """
        identity = {"model": self.model_hash, "threads": self.threads}
        return fingerprint(identity | self._covariance_fingerprint())

    @cached_property
    def model_hash(self) -> str:
        """What tells the unedited model from any other, whatever it is called and wherever it lies.

        A checkpoint goes by its content, or by its pinned revision on the hub.
        """
        if self.model.checkpoint is None:
            return fingerprint(plain(self._model_fingerprint()))
        return fingerprint({"checkpoint": self._checkpoint, "dtype": self.model.dtype})

    @cached_property
    def _checkpoint(self) -> str:
        """Which checkpoint it is; workers are told, and need not read all its weights again."""
        assert self.model.checkpoint is not None
        return checkpoint_fingerprint(self.model.checkpoint)

    def _covariance_fingerprint(self) -> dict[str, Any]:
        entry = asdict(self.statistics)
        return {"corpus_hash": self.corpus_hash, "dtype": entry["dtype"], "shards": entry["shards"]}

    @property
    def trajectory_batches(self) -> int:
        """Batches of a training trajectory."""
        return int(self.settings.trajectory_batches or self.stream.n_batches)

    @property
    def trained_batches(self) -> int:
        """Batches that training runs through before the stream; 0 where nothing is trained."""
        if not self.trains:
            return 0
        steps = int(getattr(self.settings, "train_steps", 1))
        each = int(getattr(self.settings, "trajectories_per_step", 1))
        return steps * each * self.trajectory_batches

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that changes the cell's numbers, as plain JSON."""
        return plain(
            {
                "key_version": KEY_VERSION,
                "grid": self.grid,
                "model": {
                    "name": self.model.name,
                    "scale": self.scale,
                    **self._model_fingerprint(),
                },
                "dataset": {
                    "name": self.dataset.name,
                    "split": self.dataset.split,
                    "order": self.dataset.order,
                    "data_hash": self.source().data_hash,
                    **self._text_identity(),
                },
                "editor": self.editor_name,
                **self._foreign_source(),
                "variant": self.editor.variant,
                "settings": asdict(self.settings),
                **self._calibration(),
                "stream": asdict(self.stream),
                "seed": self.seed,
                "protocols": list(self.protocols),
                "checkpoints": self.checkpoints,
                **({"also_after": self.also_after} if self.also_after else {}),
                "probes": self.probes,
                "threads": self.threads,
                **({"statistics": self._covariance_fingerprint()} if self._uses_covariance else {}),
                **({"measurements": self._measured()} if self.measurements else {}),
            }
        )

    def _measured(self) -> dict[str, Any]:
        content = eval_data_hash(self.material, self.measurements, self._own_world())
        return {"names": sorted(self.measurements), "material_hash": content}

    def _own_world(self) -> World | None:
        """The world that the cell's model was trained on; None for a checkpoint."""
        return None if self.model.checkpoint is not None else self.world()

    def open_eval_data(self) -> EvalData:
        """What the cell's measurements look at."""
        return load_eval_data(self.material, self.measurements, self._own_world())

    def _foreign_source(self) -> dict[str, str]:
        """What tells versions of an editor apart that this project's version does not cover."""
        if ":" not in self.editor.editor:
            return {}
        text = inspect.getsource(sys.modules[editor_class(self.editor.editor).__module__])
        return {"editor_source": hashlib.sha256(text.encode()).hexdigest()[:16]}

    @property
    def _uses_covariance(self) -> bool:
        return "statistics" in self.needs

    @cached_property
    def key(self) -> str:
        """Hash of the identity."""
        return fingerprint(self.identity)

    @cached_property
    def train_key(self) -> str:
        """Hash of what the trained network depends on: cells that agree in it share it."""
        kept = ("key_version", "model", "dataset", "editor", "editor_source", "settings", "seed")
        names = [n for n in (*kept, "calibration", "threads") if n in self.identity]
        identity = {name: self.identity[name] for name in names}
        # Training draws from the train pool only, whatever the stream is drawn from.
        identity["dataset"] = {k: v for k, v in identity["dataset"].items() if k != "split"}
        batch = self.stream.batch_size
        return fingerprint(identity | {"trajectory": [self.trajectory_batches, batch]})

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
            scale=scale_of(self.scale, self.model.checkpoint),
            seed=self.seed,
            batch_size=self.stream.batch_size,
            n_batches=self.stream.n_batches,
        )

    def source(self) -> EditSource:
        """The data the cell's edits come from."""
        return source_of(self.dataset)

    def world(self) -> World:
        """The synthetic world the cell's model is trained on."""
        return world_of(self.dataset.world)

    def _model_fingerprint(self) -> dict[str, Any]:
        if self.model.checkpoint is not None:
            return {
                "checkpoint": self._checkpoint,
                "dtype": self.model.dtype,
                **({"dequantised": self.quantised.words} if self.quantised else {}),
                **self._prompting(),
            }
        world = {"world_hash": self.world().data_hash}
        return {**self.model_spec.identity, **world, **self._prompting()}

    def _prompting(self) -> dict[str, Any]:
        """How the model is prompted: in which template, and whether texts begin with BOS.

        Left out where the rest of the identity says it: an embedded model's tokenizer is made by
        its settings. What the tokenizer really writes is in the results (`resolved.prompt`).
        """
        checkpoint, preset = self.model.checkpoint, self.model.preset
        chat = self.model.prompt_style == "chat"
        if checkpoint is None:
            if not chat:
                return {}
            known = {} if preset is None else {"bos": self.model_spec.writes_bos}
            return {"prompt": {"template": "chat", **known}}
        metadata: dict[str, Any] = {"template": self.model.prompt_style, "bos": self._bos}
        if chat:
            metadata |= template_fingerprint(checkpoint)
            if self._published is None and (off := thinking_switches(checkpoint)):
                metadata["without_thinking"] = off
        return {"prompt": metadata}

    @property
    def _published(self) -> Preset | None:
        """The preset whose own checkpoint the model is: the hub need not be asked what it is."""
        preset = None if self.model.preset is None else PRESETS[self.model.preset]
        return preset if preset and preset.checkpoint == self.model.checkpoint else None

    @cached_property
    def _bos(self) -> bool | None:
        """Whether texts begin with BOS; None where the checkpoint has no tokenizer."""
        if self.model.bos is not None:
            return self.model.bos
        if self._published is not None:
            return self._published.bos
        assert self.model.checkpoint is not None
        return writes_bos(self.model.checkpoint)

    def _unusual_bos(self) -> dict[str, bool | None]:
        """Whether a corpus is read with BOS, where the family's tokenizers usually differ.

        Key covariance of older caches were made by the family's rule, and are known without it.
        """
        if self.model.checkpoint is None:
            return {}
        published = self._published
        family = published.family if published else checkpoint_family(self.model.checkpoint)
        return {} if self._bos == (family in BOS_FAMILIES) else {"bos": self._bos}

    def _text_identity(self) -> dict[str, Any]:
        """How the data becomes text to encode, where that is not one space before each answer."""
        chat = self.model.prompt_style == "chat"
        found: dict[str, Any] = {}
        if (space := answer_space_of(self.dataset, chat)) is not None:
            found["answer_space"] = space
        if spells_control(self.dataset):
            found["control_tokens"] = "text"
        return found


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
            protocols=grid.protocols,
            checkpoints=grid.checkpoints,
            also_after=_shorter(grid, stream, editor),
            probes=grid.probes,
            threads=grid.threads,
            statistics=grid.statistics,
            measurements=grid.measurements,
            material=grid.material,
            resources=grid.resources,
            keep_edited=grid.keep_edited,
            answers=grid.answers,
        )
        for seed in grid.seeds
        for model in grid.models
        for dataset in grid.datasets
        for stream in grid.streams
        for editor in grid.editors
        if not _answered(grid, stream, editor)
    ]


def _shares(grid: Grid, editor: EditorEntry) -> bool:
    return grid.share_prefixes and editor_class(editor.editor).prefix_safe


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
