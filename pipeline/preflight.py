"""Everything that can be found wrong before a GPU is asked for.

In this order, cheapest first: the checkpoint and its access, its files, the edited modules, the
tokenizer on the stream's own rows, and on those that training draws from. Nothing is trained and no
weights are read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from pipeline.architecture import Architecture, architecture_of
from pipeline.cells import Cell
from pipeline.checkpoints import (
    CheckpointError,
    check_weights,
    fetch_description,
    is_folder,
    lacking_weights,
    read_config,
    weight_files,
)
from pipeline.harness import require_harness
from pipeline.material import HARNESS
from pipeline.opening import configured, stored_name
from pipeline.quantised import packed_tensor
from pipeline.yaml_location import ConfigError
from rledit.chat import PromptStyle
from rledit.editors import editor_class
from rledit.families import Family
from rledit.locate.contexts import Contexts
from rledit.locate.requests import make_requests
from rledit.metrics import protocol
from rledit.scoring import questions
from rledit.tokenization import Encoder, TokenizationError
from rledit.world import World, WorldModelSpec, world_encoder

logger = logging.getLogger(__name__)

_AT_ONCE = 1000  # edits
_MANY = 20_000


def preflight(cells: Sequence[Cell]) -> None:
    """Check models, edited modules, tokenizers, streams and training data; see the module.

    Raises:
        ConfigError: What is wrong, where, and what to do about it.
        DatasetError: The files of edits cannot be read.
    """
    if any(HARNESS in cell.measurements for cell in cells):
        require_harness()
    checked: set[tuple[Any, ...]] = set()

    def first(*what: Any) -> bool:
        """Whether this is asked for the first time: cells share most of what is checked."""
        known = what in checked
        checked.add(what)
        return not known

    for cell in cells:
        model, data = cell.model.name, cell.dataset.name
        if first("modules", model, cell.editor_name, tuple(cell.settings.modules)):
            check_modules(cell, _shapes(cell))
        if cell.obstacle is not None:
            continue
        if first("tokenizer", model, data, cell.label):
            check_tokenizer(cell)
        if first("stream", model, data, cell.n_edits, cell.seed, "subject" in cell.needs):
            check_stream(cell)
        if cell.learns and first("train pool", model, data):
            check_train_pool(cell)


def check_modules(cell: Cell, stored: dict[str, tuple[int, ...]] | None = None) -> None:
    """Find the edited modules in the model's classes, and their matrices in its weight files.

    Args:
        cell: Its model and the editor's modules.
        stored: Tensor name → shape of the checkpoint's files, where they are on this machine.

    Raises:
        ConfigError: A module does not exist, is of a kind the editor cannot edit, or its stored
            matrix has another shape than the configuration says.
    """
    architecture = architecture_of(cell)
    try:
        linears = architecture.linears(cell.settings.modules)
    except ValueError as error:
        raise ConfigError(f"{cell.path}: {error}") from None
    _check_kind(cell, architecture, list(linears))
    if stored and architecture.quantised is None and (odd := packed_tensor(stored)) is not None:
        raise CheckpointError(
            f"checkpoint {cell.model.checkpoint!r}: its weights are quantised, as the tensor "
            f"{odd!r} shows, though config.json has no quantization_config; edits are written into "
            "plain matrices: take the unquantised checkpoint that it was made from"
        )
    # Packed weights have other shapes; loading them holds names and shapes against the model.
    for name in linears if stored and architecture.quantised is None else ():
        weight = f"{name}.weight"
        due = tuple(architecture.model.get_parameter(weight).shape)
        shape = (stored or {}).get(stored_name(weight, stored or {}))
        if shape != due:
            found = "has no such tensor" if shape is None else f"has it as {shape}"
            raise CheckpointError(
                f"{cell.path}: edited module {name!r} should be a matrix {due} by "
                f"config.json, but checkpoint {cell.model.checkpoint!r} {found}; configuration and "
                "weights are not of one model"
            )


def _check_kind(cell: Cell, architecture: Architecture, names: Sequence[str]) -> None:
    kind = editor_class(cell.editor.editor).linears
    down = architecture.description.linears["down"]
    other = [name for name in names if not name.endswith(f".{down}")]
    if kind != "any" and other:
        raise ConfigError(
            f"{cell.path}: {cell.editor_name} edits the linears that write into the residual "
            f"stream (down, here {down!r}), not {other[0]!r}; give it modules such as down:4-8"
        )
    if kind == "one_down" and len(names) != 1:
        raise ConfigError(
            f"{cell.path}: {cell.editor_name} edits exactly one linear, and its modules name "
            f"{len(names)}; give it one, such as down:5"
        )


def check_tokenizer(cell: Cell) -> None:
    """Ask the editor whether it can work with the model's tokenizer.

    Raises:
        ConfigError: It cannot; says what the tokenizer lacks.
    """
    try:
        problem = editor_class(cell.editor.editor).obstacle_of(cell.settings, _encoder(cell))
    except TokenizationError as error:  # the encoder cannot be made at all
        problem = str(error)
    if problem is not None:
        raise ConfigError(f"{cell.path}: {problem}")


def check_stream(cell: Cell) -> None:
    """Tokenise the stream once, and look up its subjects where the editor will.

    Raises:
        ConfigError: An edit breaks the token contract; names file, row and reason.
    """
    try:
        encoder = _encoder(cell)
        edits = cell.source().draw(cell.dataset.split, cell.n_edits, seed=cell.seed)
        encoder.batch(edits, group_size=1)
        protocols = [protocol(name) for name in cell.protocols]
        for edit in edits:
            questions(encoder, edit, protocols, cell.probes, cell.seed)  # type: ignore[arg-type]
        if "subject" in cell.needs:
            make_requests(encoder, edits, Contexts())
    except TokenizationError as error:
        raise ConfigError(f"{cell.path}: {error}") from None


def check_train_pool(cell: Cell) -> None:
    """Tokenise all that training may draw: which edits it draws, no two seeds have in common.

    Raises:
        ConfigError: An edit breaks the token contract; names file, row and reason.
    """
    pool = cell.source().sizes()["train"]
    if pool >= _MANY:
        logger.info("%s: tokenising the train pool, %d edits", cell.dataset.name, pool)
    try:
        encoder = _encoder(cell)
        edits = cell.source().draw("train", pool, seed=cell.seed)
        for start in range(0, pool, _AT_ONCE):
            encoder.batch(edits[start : start + _AT_ONCE], group_size=1)
    except TokenizationError as error:
        raise ConfigError(f"{cell.path}, which learns from the train pool: {error}") from None


def _shapes(cell: Cell) -> dict[str, tuple[int, ...]] | None:
    """Shapes in the checkpoint's files; None for a model that is made or fetched later."""
    if cell.model.checkpoint is None:
        return None
    if is_folder(cell.model.checkpoint):
        return _stored(cell.model.checkpoint)
    folder = fetch_description(cell.model.checkpoint)
    # What the hub's cache lacks is fetched when the model is prepared, if the hub has it.
    lacking_weights(cell.model.checkpoint, folder)
    files = weight_files(folder)
    return check_weights(folder) if files and all(f.is_file() for f in files) else None


@lru_cache(maxsize=8)
def _stored(folder: str) -> dict[str, tuple[int, ...]]:
    found = check_weights(Path(folder))
    if not found:
        raise CheckpointError(
            f"checkpoint {folder!r} has a configuration and no weights (*.safetensors): enough for "
            "rledit plan; to run, fetch the whole checkpoint"
        )
    return found


def _encoder(cell: Cell) -> Encoder:
    if cell.model.checkpoint is None:
        return _world_encoder(cell.world(), cell.model_spec)
    family = architecture_of(cell).description
    return _checkpoint_encoder(cell.model.checkpoint, family, cell.model.prompt_style)


@lru_cache(maxsize=4)
def _world_encoder(world: World, spec: WorldModelSpec) -> Encoder:
    return world_encoder(world, spec)


@lru_cache(maxsize=4)
def _checkpoint_encoder(checkpoint: str, family: Family, style: PromptStyle) -> Encoder:
    folder = fetch_description(checkpoint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: its tokenizer cannot be loaded ({error}); fetch "
            "tokenizer.json and tokenizer_config.json again"
        ) from None
    return Encoder(tokenizer, family, _positions(folder), style)


def _positions(folder: Path) -> int | None:
    """The model's longest input."""
    config = configured(read_config(folder), str(folder))
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else int(limit)
