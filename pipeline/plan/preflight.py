"""Preflight checks: everything that can be found wrong before a GPU is asked for.

In this order, cheapest first: the checkpoint and its access, its files, the edited modules, the
tokenizer on the stream's own rows, and on those that training and calibration draw from. All rows
are looked at, and a row stops the cells that draw it. Nothing is trained and no weights are read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.config.grid import HARNESS
from pipeline.errors import ConfigError
from pipeline.inputs.checkpoints import (
    CheckpointError,
    cached,
    check_weights,
    fetch_description,
    is_folder,
    lacking_weights,
    read_config,
    weight_files,
)
from pipeline.inputs.lm_harness import require_harness
from pipeline.inputs.model_loading import configured, require_scales, stored_name
from pipeline.inputs.quantised_weights import packed_tensor
from pipeline.inputs.tokenizer_files import load_tokenizer
from pipeline.plan.architecture import Architecture, architecture_of
from pipeline.plan.cell_data import (
    calibration_batch,
    calibration_edits,
    calibration_pool,
    validation_batches,
    validation_edits,
)
from pipeline.plan.cell_keys import key_of
from pipeline.plan.cells import Cell
from pipeline.plan.checks import skip_reason
from pipeline.plan.grid_plan import Plan
from pipeline.plan.row_faults import Faults, stream_faults, subject_faults, together, train_faults
from rledit.chat import PromptStyle
from rledit.editors import editor_class
from rledit.free_answers import FreeForm
from rledit.instructions import Instruction
from rledit.records import Edit
from rledit.tokenization import Encoder, TokenizationError
from rledit.world import World, WorldModelSpec, world_encoder
from rledit.writing_systems import AnswerSpace

logger = logging.getLogger(__name__)

_MANY = 20_000


def preflight(cells: Sequence[Cell], others: bool = False) -> dict[str, Refusal]:
    """Check models, edited modules, tokenizers, streams and training data; see the module.

    What is wrong with the grid or a model stops it. Rows that cannot be used, and tokenizers that
    an editor cannot work with, stop only the cells concerned.

    Args:
        cells: The cells that are to run.
        others: There are others, which have run: then it is no error that all of these are refused.

    Returns:
        Why cells cannot run, by key.

    Raises:
        ConfigError: What is wrong, where, and what to do about it; no cell can run.
        DatasetError: The files of edits cannot be read.
    """
    if any(HARNESS in cell.measurements for cell in cells):
        require_harness()
    checked: set[tuple[Any, ...]] = set()
    for cell in cells:
        fact_token = getattr(cell.settings, "fact_token", None)
        what = (cell.model.name, cell.editor_name, tuple(cell.settings.modules), fact_token)
        if what not in checked:
            checked.add(what)
            check_modules(cell, _shapes(cell))
    able = [cell for cell in cells if skip_reason(cell) is None]
    checks = _Checks()
    refused = {key_of(cell): found for cell in able if (found := checks.refusal(cell)) is not None}
    if refused and len(refused) == len(able) and not others:
        raise ConfigError("\n".join(refusal_lines(able, refused)))
    return refused


def checked(plan: Plan) -> tuple[Plan, list[str]]:
    """A plan that knows which of its missing cells cannot run, and why in lines for people.

    Raises:
        ConfigError: As for `preflight`.
        DatasetError: As for `preflight`.
    """
    refused = preflight(plan.missing, others=bool(plan.done))
    lines = refusal_lines(plan.missing, refused, lead="skipped: ")
    return replace(plan, refused={key: str(found) for key, found in refused.items()}), lines


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a cell cannot run.

    Attributes:
        problem: What is wrong beside rows; "" where it is rows.
        faults: The rows that the cell cannot use.
    """

    problem: str = ""
    faults: tuple[Faults, ...] = ()

    def __str__(self) -> str:
        return self.problem or "; ".join(map(str, self.faults))


def refusal_lines(
    cells: Sequence[Cell], refused: Mapping[str, Refusal], lead: str = ""
) -> list[str]:
    """Why cells cannot run, for people: each reason once, with the editors it concerns.

    What differs between the cells of an editor by seed and length of the stream is put together.
    """
    alike: dict[tuple[str, ...], list[Cell]] = {}
    for own in _by_editor(cells, refused):
        lines = tuple(_lines([refused[key_of(cell)] for cell in own]))
        alike.setdefault((own[0].model.name, own[0].dataset.name, *lines), []).extend(own)
    said = []
    for (_, _, first, *rest), concerned in alike.items():
        n, labels = len(concerned) - 1, dict.fromkeys(cell.label for cell in concerned)
        more = f" and {n} more cell{'s' * (n > 1)} of {', '.join(labels)}" if n else ""
        said.append(f"{lead}{concerned[0].path}{more}: {first}")
        said += [f"  {line}" for line in rest]
    return said


def _by_editor(cells: Sequence[Cell], refused: Mapping[str, Refusal]) -> list[list[Cell]]:
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if key_of(cell) in refused:
            key = (cell.model.name, cell.dataset.name, cell.label)
            groups.setdefault(key, []).append(cell)
    return list(groups.values())


def _lines(refusals: Sequence[Refusal]) -> Iterator[str]:
    yield from dict.fromkeys(refusal.problem for refusal in refusals if refusal.problem)
    found: dict[str, list[Faults]] = {}
    for refusal in refusals:
        for faults in refusal.faults:
            found.setdefault(faults.what, []).append(faults)
    for what, parts in found.items():
        if (every := together(what, parts)) is not None:
            yield f"{every.count}:"
            yield from every.lines


class _Checks:
    """Looks at the tokenizers and rows of cells; what they share is looked at once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Any] = {}

    def refusal(self, cell: Cell) -> Refusal | None:
        """Why a cell cannot run; None where it can."""
        model, data = cell.model.name, cell.dataset.name
        problem = self._once(check_tokenizer, "tokenizer", model, data, cell.label)(cell)
        if problem is not None:
            return Refusal(problem=problem)
        draw = ("stream", model, data, cell.n_edits, cell.seed, cell.instruction)
        looks: list[Faults] = [self._once(_check_stream, *draw)(cell)]
        if "subject" in cell.needs:
            looks.append(self._once(_check_subjects, "subject", *draw)(cell))
        found = [together("the stream", looks)]
        if cell.learns:
            told = (model, data, _taught(cell), _augments(cell))
            pool: Faults = self._once(_check_train_pool, "train pool", *told)(cell)
            found.append(together(f"the train pool, which {cell.label} learns from,", [pool]))
        if n := validation_batches(cell):
            size = n * cell.stream.batch_size
            held = ("validation", model, data, size, cell.training_seed, cell.instruction)
            held_out: Faults = self._once(_check_validation, *held)(cell)
            what = f"the validation pool, which decides when the training of {cell.label} ends,"
            found.append(together(what, [held_out]))
        if cell.calibrates:
            drawn = (calibration_pool(cell), calibration_edits(cell), cell.instruction)
            batch: Faults = self._once(_check_calibration, "calibration", model, data, *drawn)(cell)
            what = f"the batch that the step of {cell.label} is calibrated on,"
            found.append(together(what, [batch]))
        faults = tuple(item for item in found if item is not None)
        return Refusal(faults=faults) if faults else None

    def _once(self, check: Callable[[Cell], Any], *what: Any) -> Callable[[Cell], Any]:
        def known(cell: Cell) -> Any:
            if what not in self._known:
                self._known[what] = check(cell)
            return self._known[what]

        return known


def _check_values_reach_answers(cell: Cell, architecture: Architecture) -> None:
    """Refuse value vectors that no answer depends on.

    A value vector at the last layer changes its own token's logits alone: at the subject's token,
    mostly not among those that answer, its loss has no gradient, and Adam follows round-off.

    Raises:
        ConfigError: The cell would be edited with such values.
    """
    settings = cell.settings
    if getattr(settings, "fact_token", None) != "subject_last":
        return
    if architecture.edits_last_layer(settings.modules):
        raise ConfigError(
            f"{cell.path}: {cell.label} writes facts at the subject's last token in the last "
            "layer, above which no attention carries them to the answer; edit lower layers "
            "(target_modules), or set fact_token: last"
        )


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
        target_modules = architecture.target_modules(cell.settings.modules)
    except ValueError as error:
        raise ConfigError(f"{cell.path}: {error}") from None
    _check_kind(cell, architecture, list(target_modules))
    _check_values_reach_answers(cell, architecture)
    if stored and architecture.quantised is None and (odd := packed_tensor(stored)) is not None:
        raise CheckpointError(
            f"checkpoint {cell.model.checkpoint!r}: its weights are quantised, as the tensor "
            f"{odd!r} shows, though config.json has no quantization_config; edits are written into "
            "plain matrices: take the unquantised checkpoint that it was made from"
        )
    if stored and (folder := cached(str(cell.model.checkpoint))) is not None:
        require_scales(folder)
    # Packed weights have other shapes; loading them holds names and shapes against the model.
    for name in target_modules if stored and architecture.quantised is None else ():
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
    kind = editor_class(cell.editor.editor).target_modules
    down = architecture.description.target_modules["down"]
    other = [name for name in names if not name.endswith(f".{down}")]
    if kind != "any" and other:
        raise ConfigError(
            f"{cell.path}: {cell.editor_name} edits the linear layers that write into the residual "
            f"stream (down, here {down!r}), not {other[0]!r}; give it modules such as down:4-8"
        )
    if kind == "one_down" and len(names) != 1:
        raise ConfigError(
            f"{cell.path}: {cell.editor_name} edits exactly one linear, and its modules name "
            f"{len(names)}; give it one, such as down:5"
        )


def check_tokenizer(cell: Cell) -> str | None:
    """What the model's tokenizer lacks for the editor, or for any; None where it lacks nothing."""
    try:
        encoder = _encoder(cell)
        if cell.writes_freely:
            FreeForm(**asdict(cell.wild)).encoder(encoder)
        return editor_class(cell.editor.editor).skip_reason_of(cell.settings, encoder)
    except TokenizationError as error:  # the encoder cannot be made at all
        return str(error)


def _check_stream(cell: Cell) -> Faults:
    return stream_faults(cell, _encoder(cell), _stream(cell))


def _check_subjects(cell: Cell) -> Faults:
    return subject_faults(_encoder(cell), _stream(cell))


def _stream(cell: Cell) -> list[Edit]:
    return cell.source().draw(cell.dataset.split, cell.n_edits, seed=cell.seed)


def _check_train_pool(cell: Cell) -> Faults:
    """All that training may draw: which edits it draws, no two seeds have in common."""
    pool = cell.source().sizes()["train"]
    if pool >= _MANY:
        logger.info("%s: tokenising the train pool, %d edits", cell.dataset.name, pool)
    edits = cell.source().draw("train", pool, seed=cell.seed)
    encoder = _encoder(cell)
    if asked := _taught(cell):  # who fits with the longest fits with all
        longest = max(asked, key=lambda one: len(encoder.tokenizer(one.around(""))["input_ids"]))
        encoder = encoder.instructed(longest)
    return train_faults(encoder, edits, _augments(cell))


def _taught(cell: Cell) -> tuple[Instruction, ...]:
    return editor_class(cell.editor.editor).training_instructions_of(cell.settings)


def _augments(cell: Cell) -> bool:
    return bool(getattr(cell.settings, "augment", False))


def _check_validation(cell: Cell) -> Faults:
    return train_faults(_encoder(cell), validation_edits(cell))


def _check_calibration(cell: Cell) -> Faults:
    return train_faults(_encoder(cell), calibration_batch(cell))


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
    prompting = cell.prompting
    instruction = prompting.pop("instruction")
    if cell.model.checkpoint is None:
        found = _world_encoder(cell.world(), cell.model_spec, cell.dataset.answer_space)
    else:
        found = checkpoint_encoder(cell.model.checkpoint, **prompting)
    return found.instructed(instruction)


@lru_cache(maxsize=4)
def _world_encoder(world: World, spec: WorldModelSpec, answer_space: AnswerSpace) -> Encoder:
    return world_encoder(world, spec, answer_space)


@lru_cache(maxsize=4)
def checkpoint_encoder(
    checkpoint: str, prompt_style: PromptStyle, bos: bool | None, answer_space: AnswerSpace
) -> Encoder:
    """The encoder of a checkpoint's tokenizer, with the model's longest input."""
    folder = fetch_description(checkpoint)
    return Encoder(
        load_tokenizer(checkpoint, folder),
        max_length=_positions(folder),
        style=prompt_style,
        bos=bos,
        answer_space=answer_space,
    )


def _positions(folder: Path) -> int | None:
    """The model's longest input."""
    config = configured(read_config(folder), str(folder))
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else int(limit)
