"""Fingerprints of a cell: hashes of what changes its numbers, by which results and caches are kept.

A cell's identity is what changes its numbers. Where and how it runs is no part of it, nor is what
it is called: names of grid, model, dataset and variant are its address (`address_of`), and cells of
several addresses with one key are one cell. Every function here reads the cell's data, and the
weights of a checkpoint in a folder, unless that has been done for the same cell: what is found
stays with it, and goes with it to the workers.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from dataclasses import asdict
from typing import Any

from pipeline.config.gguf_refs import gguf_reference
from pipeline.config.grid import WildEntry
from pipeline.inputs.checkpoints import checkpoint_family
from pipeline.inputs.content_hashes import (
    checkpoint_fingerprint,
    fingerprint,
    plain,
    template_fingerprint,
)
from pipeline.inputs.datasets import answer_space_of, spells_control
from pipeline.inputs.eval_data import eval_data_hash
from pipeline.inputs.gguf_checkpoints import packed_words
from pipeline.inputs.tokenizer_files import thinking_switches, writes_bos
from pipeline.plan.cell_data import (
    calibration_edits,
    calibration_pool,
    former_validation_batches,
    own_world,
    read_corpus,
    read_quantisation,
    validation_batches,
)
from pipeline.plan.cells import Cell
from pipeline.plan.imported import imported_of, projections_of, reads_corpus
from pipeline.plan.spec import once
from pipeline.results.lake.key_versions import KEY_VERSION, with_labels
from pipeline.results.lake.records import CellAddress, scale_of
from rledit.calibration import RULE, shift_settings
from rledit.editors import editor_class
from rledit.world import BOS_FAMILIES

# Networks whose rows were clamped in editing alone, or whose trajectories all drew the same prompts
# of the window, lie in caches under the keys that their settings have without this number.
_TRAINING_VERSION = 2
_CALIBRATION_VERSION = 1  # keys of calibrations never held labels
# Families whose covariances were named with their BOS before the world had a model of them.
_NOT_IN_OLDER_CACHES = frozenset({"gemma3_text"})


@once
def identity_of(cell: Cell) -> dict[str, Any]:
    """Everything that changes the cell's numbers, as plain JSON."""
    return plain(
        {
            "key_version": KEY_VERSION,
            "model": _model(cell),
            "dataset": {
                "split": cell.dataset.split,
                "order": cell.dataset.order,
                "data_hash": cell.source().data_hash,
                **_texts(cell),
            },
            "editor": cell.editor_name,
            **_foreign_source(cell),
            "settings": _settings(cell),
            **_calibration(cell),
            "stream": asdict(cell.stream),
            "seed": cell.seed,
            **_training_seed(cell),
            **_validated(cell),
            "protocols": list(cell.protocols),
            "checkpoints": cell.checkpoints,
            **({"also_after": cell.also_after} if cell.also_after else {}),
            "probes": cell.probes,
            **({"scored_edits": cell.scored_edits} if cell.scored_edits is not None else {}),
            **_wild(cell),
            "threads": cell.threads,
            **({"statistics": _covariance(cell)} if "statistics" in cell.needs else {}),
            **({"measurements": _measured(cell)} if cell.measurements else {}),
        }
    )


@once
def key_of(cell: Cell) -> str:
    """The cell's key: the hash of its identity."""
    return fingerprint(identity_of(cell))


def address_of(cell: Cell) -> CellAddress:
    """The columns under which this cell's results are shown, and its key."""
    return CellAddress(
        cell_key=key_of(cell),
        grid=cell.grid,
        editor=cell.editor_name,
        variant=cell.editor.variant,
        model=cell.model.name,
        dataset=cell.dataset.name,
        scale=scale_of(cell.scale, cell.model.checkpoint),
        seed=cell.seed,
        batch_size=cell.stream.batch_size,
        n_batches=cell.stream.n_batches,
    )


@once
def train_key_of(cell: Cell) -> str:
    """Hash of what the trained network depends on: cells that agree in it share it."""
    return _train_key(cell, identity_of(cell))


def former_keys_of(cell: Cell) -> tuple[str, str | None]:
    """The keys that version 1 knew the cell and its trained network by; None without a network.

    Its identities held labels: they are those of this cell.
    """
    identity = with_labels(
        identity_of(cell),
        grid=cell.grid,
        model=cell.model.name,
        dataset=cell.dataset.name,
        variant=cell.editor.variant,
        scale=cell.scale,
    )
    return fingerprint(identity), _train_key(cell, identity) if cell.trains else None


def _train_key(cell: Cell, known: dict[str, Any]) -> str:
    kept = ("key_version", "model", "dataset", "editor", "editor_source", "settings", "seed")
    identity = {name: known[name] for name in (*kept, "calibration", "threads") if name in known}
    identity["seed"] = cell.training_seed
    identity |= _validated(cell)
    settings = known["settings"]
    if settings.get("z_clip") or settings.get("window_share", 1) < 1:
        identity["training_version"] = _TRAINING_VERSION
    if not cell.resources.prefix_store_gb:
        identity["prefix_store_gb"] = 0  # numbers have other last bits than with a store
    # Training draws from the train pool only, whatever the stream is drawn from.
    identity["dataset"] = {k: v for k, v in identity["dataset"].items() if k != "split"}
    batch = cell.stream.batch_size
    return fingerprint(identity | {"trajectory": [cell.trajectory_batches, batch]})


def _validated(cell: Cell) -> dict[str, int]:
    """Batches that training is validated on, where they are others than settings alone say."""
    found = validation_batches(cell)
    return {"validated": found} if found != former_validation_batches(cell) else {}


def _training_seed(cell: Cell) -> dict[str, int]:
    """The seed of training, where a grid makes it another than the stream's."""
    other = cell.learns and cell.training_seed != cell.seed
    return {"training_seed": cell.training_seed} if other else {}


@once
def calibration_key_of(cell: Cell) -> str:
    """Hash of what the calibrated step depends on: cells that agree in it share it.

    The batch is drawn with seed 0, whatever the cell's seed, so that seeds share their step.
    """
    identity = identity_of(cell)
    dataset = {name: identity["dataset"][name] for name in ("order", "data_hash")} | _texts(cell)
    cls = editor_class(cell.editor.editor)
    # What warms up on the train pool before it is tried draws batches as large as the stream's.
    drawn = {"batch_size": cell.stream.batch_size} if "training_data" in cell.needs else {}
    return fingerprint(
        plain(
            {
                "key_version": _CALIBRATION_VERSION,
                "model": identity["model"],
                "dataset": dataset,
                "settings": shift_settings(cls, cell.unseeded.settings),
                "threads": cell.threads,
                **drawn,
                **_foreign_source(cell),
                **_calibration(cell),
            }
        )
    )


@once
def known_key_of(cell: Cell) -> str:
    """Hash of what the real facts that the model knows depend on."""
    data = {"data_hash": cell.source().data_hash, "threads": cell.threads, **_spacing(cell)}
    return fingerprint(plain({"model": identity_of(cell)["model"], **data}))


@once
def covariance_key_of(cell: Cell) -> str:
    """Hash of what key covariance depend on, whichever linear layers they are of.

    Cells that agree in it share them: editors, streams and datasets do not matter.
    """
    return fingerprint({"model": model_hash_of(cell), "threads": cell.threads} | _covariance(cell))


@once
def model_hash_of(cell: Cell) -> str:
    """What tells the unedited model from any other, whatever it is called and wherever it lies.

    A checkpoint goes by its content, or by its pinned revision on the hub.
    """
    if cell.model.checkpoint is None:
        return fingerprint(plain(_model(cell)))
    return fingerprint({"checkpoint": _checkpoint(cell), "dtype": cell.model.dtype})


@once
def corpus_hash_of(cell: Cell) -> str:
    """Content hash of the corpus, with how it is cut into tokens."""
    content, most = read_corpus(cell).content_hash, cell.statistics.max_tokens
    return fingerprint({"content": content, "max_tokens": most, **_unusual_bos(cell)})


@once
def _checkpoint(cell: Cell) -> str:
    """Which checkpoint it is."""
    assert cell.model.checkpoint is not None
    return checkpoint_fingerprint(cell.model.checkpoint)


def _covariance(cell: Cell) -> dict[str, Any]:
    if found := projections_of(cell):
        return {"projections": found}
    if found := imported_of(cell):
        texts = {"corpus_hash": corpus_hash_of(cell)} if reads_corpus(cell) else {}
        return {"imported": found, **texts}
    entry = cell.statistics
    return {"corpus_hash": corpus_hash_of(cell), "dtype": entry.dtype, "shards": entry.shards}


def _calibration(cell: Cell) -> dict[str, Any]:
    """How the step is calibrated, where it is."""
    if not cell.calibrates:
        return {}
    chosen = calibration_pool(cell)
    pool = {} if chosen == "validation" else {"pool": chosen}
    return {"calibration": {"rule": RULE, "edits": calibration_edits(cell), **pool}}


def _settings(cell: Cell) -> dict[str, Any]:
    """The settings, without younger ones that are as everything was before there were any."""
    younger = getattr(type(cell.settings), "younger", {})
    given = asdict(cell.settings)
    return {k: v for k, v in given.items() if k not in younger or v != younger[k]}


def _wild(cell: Cell) -> dict[str, Any]:
    """How free answers are asked for, where some are and it is not the default way.

    A chat that is of these questions alone has its template here, which else is the model's.
    """
    if cell.wild == WildEntry() or not cell.writes_freely:
        return {}
    found = asdict(cell.wild)
    if cell.wild.context == "chat" and cell.model.prompt_style != "chat":
        found |= _template(cell)
    return {"wild": found}


def _measured(cell: Cell) -> dict[str, Any]:
    content = eval_data_hash(cell.material, cell.measurements, own_world(cell))
    return {"names": sorted(cell.measurements), "material_hash": content}


def _foreign_source(cell: Cell) -> dict[str, str]:
    """What tells versions of an editor apart that this project's version does not cover."""
    if ":" not in cell.editor.editor:
        return {}
    text = inspect.getsource(sys.modules[editor_class(cell.editor.editor).__module__])
    return {"editor_source": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _model(cell: Cell) -> dict[str, Any]:
    if cell.model.checkpoint is not None:
        return {
            "checkpoint": _checkpoint(cell),
            "dtype": cell.model.dtype,
            **({"dequantised": words} if (words := _packed(cell)) else {}),
            **_prompting(cell),
        }
    world = {"world_hash": cell.world().data_hash}
    return {**cell.model_spec.identity, **world, **_prompting(cell)}


def _packed(cell: Cell) -> str | None:
    """How the checkpoint's weights are packed; None where they are plain."""
    if (gguf := gguf_reference(str(cell.model.checkpoint))) is not None:
        return packed_words(gguf)
    packed = read_quantisation(cell)
    return packed.words if packed else None


def _prompting(cell: Cell) -> dict[str, Any]:
    """How the model is prompted: in which template, and whether texts begin with BOS.

    Left out where the rest of the identity says it: an embedded model's tokenizer is made by
    its settings. What the tokenizer really writes is in the results (`resolved.prompt`).
    """
    checkpoint, preset = cell.model.checkpoint, cell.model.preset
    chat = cell.model.prompt_style == "chat"
    if checkpoint is None:
        if not chat:
            return {}
        known = {} if preset is None else {"bos": cell.model_spec.writes_bos}
        return {"prompt": {"template": "chat", **known}}
    prompt: dict[str, Any] = {"template": cell.model.prompt_style, "bos": _bos(cell)}
    if chat:
        prompt |= _template(cell)
    return {"prompt": prompt}


def _template(cell: Cell) -> dict[str, Any]:
    """What a checkpoint's chat template is known by, beside what the checkpoint itself is."""
    checkpoint = cell.model.checkpoint
    if checkpoint is None:
        return {}
    found: dict[str, Any] = {**template_fingerprint(checkpoint)}
    if cell.published is None and (off := thinking_switches(checkpoint)):
        found["without_thinking"] = off
    return found


@once
def _bos(cell: Cell) -> bool | None:
    """Whether texts begin with BOS; None where the checkpoint has no tokenizer."""
    if cell.model.bos is not None:
        return cell.model.bos
    if cell.published is not None:
        return cell.published.bos
    assert cell.model.checkpoint is not None
    return writes_bos(cell.model.checkpoint)


def _unusual_bos(cell: Cell) -> dict[str, bool | None]:
    """Whether a corpus is read with BOS, where the family's tokenizers usually differ.

    Key covariance of older caches were made by the family's rule, and are known without it.
    """
    if cell.model.checkpoint is None:
        return {}
    published = cell.published
    family = published.family if published else checkpoint_family(cell.model.checkpoint)
    usual = family in BOS_FAMILIES - _NOT_IN_OLDER_CACHES
    return {} if _bos(cell) == usual else {"bos": _bos(cell)}


def _texts(cell: Cell) -> dict[str, Any]:
    """How the data becomes text to encode, where that is not one space before each answer."""
    found: dict[str, Any] = _spacing(cell)
    if spells_control(cell.dataset):
        found["control_tokens"] = "text"
    if (instruction := cell.instruction) is not None:
        found["instruction"] = instruction.around("{}")
    return found


def _spacing(cell: Cell) -> dict[str, Any]:
    """What stands between prompt and answer, where that is not one space."""
    space = answer_space_of(cell.dataset, cell.model.prompt_style == "chat")
    return {} if space is None else {"answer_space": space}
