"""Workload of a cell in numbers: tokens, target modules, passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.plan.architecture import Architecture, architecture_of, read_layer_of
from pipeline.plan.cell_data import read_corpus
from pipeline.plan.cells import Cell
from pipeline.plan.imported import sums_corpus
from rledit.editors import editor_class
from rledit.editors.base import Work
from rledit.locate.output_gradients import covariances_of, linear_of

# Of a prompt with its answer; measured on the rows where they can be read.
TOKENS, ANSWER_TOKENS = 24.0, 4.0
CHARACTERS_PER_TOKEN = 4.0
SAMPLE = 64
DOCUMENT_TOKENS = 400.0  # of a document of running text
BYTES = {"float32": 4, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One cell's work.

    Attributes:
        kind: How the editor spends its time; an editor from outside counts as `moment`.
        dtype_bytes: Bytes of a weight of the model.
        target_modules: Edited linear → (d_in, d_out).
        first_layer: The lowest edited layer, see `Cell.read_modules`.
        tokens: Of a prompt with its answer, on average.
        answer_tokens: Of an answer.
        points: Points of the stream at which everything so far is scored.
        documents: Documents that key covariance is of, for an editor that needs it.
        document_tokens: Of one of these documents, on average; measured on the corpus where it is
            here.
        train_pool: Edits of the train pool, for a cell that trains; None: not known yet.
    """

    cell: Cell
    architecture: Architecture
    kind: Work
    dtype_bytes: int
    target_modules: Mapping[str, tuple[int, int]]
    first_layer: int
    tokens: float
    answer_tokens: float
    points: tuple[int, ...]
    documents: int = 0
    document_tokens: float = 0.0
    train_pool: int | None = None

    @property
    def edited_parameters(self) -> int:
        """Entries of the edited matrices."""
        return sum(d_in * d_out for d_in, d_out in self.target_modules.values())

    @property
    def covariances(self) -> dict[str, int]:
        """Width of every covariance that the editor takes of text, by its name; none without."""
        if "statistics" not in self.cell.needs:
            return {}
        shapes = self.target_modules
        return {
            name: shapes[linear_of(name)][name not in shapes]
            for name in covariances_of(shapes, self.cell.needs)
        }

    @property
    def carried_parameters(self) -> int:
        """Numbers that an editor hands from batch to batch beside the matrices: what Adam keeps of
        them, and sums over the edits; 0 without."""
        if getattr(self.cell.settings, "mode", None) != "sequential":
            return 0
        squares = sum(width * width for width in self.covariances.values())
        return 2 * self.edited_parameters + squares

    @property
    def network_parameters(self) -> int:
        """Parameters of the hypernetworks, one per linear shape; 0 without."""
        if self.kind != "trained":
            return 0
        from rledit.editors.dafnet import DAFNet
        from rledit.editors.hiedit import HiEdit, gate_parameters

        settings: Any = self.cell.settings
        cls = editor_class(self.cell.editor.editor)
        if issubclass(cls, DAFNet):
            return sum(
                settings.sizes.parameters(sum(shape)) * settings.n_blocks
                for shape in set(self.target_modules.values())
            )
        total = 0
        for shape in set(self.target_modules.values()):
            width = sum(shape)
            modules = list(self.target_modules.values()).count(shape)
            total += settings.n_blocks * (2 * width * settings.rank + width + 2 * modules * width)
        if issubclass(cls, HiEdit):
            total += gate_parameters(Counter(self.target_modules.values()), settings.gate_width)
        return total

    @property
    def past_parameters(self) -> int:
        """Numbers that an editor keeps of each edit of the stream, over all modules; 0 without."""
        if self.kind != "trained":
            return 0
        from rledit.editors.dafnet import DAFNet

        settings: Any = self.cell.settings
        if not issubclass(editor_class(self.cell.editor.editor), DAFNet):
            return 0
        each: int = settings.sizes.past * settings.n_blocks
        return len(self.target_modules) * each

    @property
    def trained_batches(self) -> int:
        """Batches that training runs through in all, those of retraining included."""
        if not self.cell.trains:
            return 0
        from rledit.editors.dafnet import DAFNet
        from rledit.editors.dafnet_training import edits_trained_on
        from rledit.editors.retrained import RetrainedEditor

        settings: Any = self.cell.settings
        if issubclass(editor_class(self.cell.editor.editor), DAFNet):
            longest, patience = settings.sequence_cap, settings.curriculum_patience
            edits = edits_trained_on(settings.train_steps, longest, patience, settings.first_cap)
            return -(-edits // self.cell.stream.batch_size)
        batches = self.cell.trained_batches
        if issubclass(editor_class(self.cell.editor.editor), RetrainedEditor):
            retrainings = self.cell.stream.n_batches // settings.retrain_every
            batches += retrainings * settings.retrain_batches
        return batches


def workload_of(cell: Cell, readable: bool = True) -> Workload:
    """The work of a cell.

    Args:
        cell: The cell.
        readable: Whether its rows can be read, so that their length is known.

    Raises:
        ConfigError: The model's configuration cannot be had, or a module does not exist.
    """
    architecture = architecture_of(cell)
    modules = cell.settings.modules
    tokens, answers = _lengths(cell) if readable else (TOKENS, ANSWER_TOKENS)
    documents, each = _corpus(cell, readable) if sums_corpus(cell) else (0, 0.0)
    return Workload(
        cell=cell,
        architecture=architecture,
        kind=editor_class(cell.editor.editor).work_kind,
        dtype_bytes=BYTES[cell.model.dtype if cell.model.checkpoint else "float32"],
        target_modules=architecture.target_modules(modules),
        first_layer=read_layer_of(cell, architecture),
        tokens=tokens,
        answer_tokens=answers,
        points=cell.points,
        documents=documents,
        document_tokens=each,
        train_pool=cell.source().sizes()["train"] if readable and cell.trains else None,
    )


def check_modules(cells: Sequence[Cell]) -> None:
    """Look up the edited modules of all cells in their models' classes.

    Raises:
        ConfigError: Some do not exist; names every model and editor with such modules.
    """
    asked = {(c.model.name, c.label, tuple(c.settings.modules)): c for c in cells}
    editors: dict[str, list[str]] = {}
    for cell in asked.values():
        if (problem := _module_problem(cell)) is not None:
            editors.setdefault(problem, []).append(cell.label)
    if editors:
        raise ConfigError("\n".join(f"{p} (edited by {', '.join(e)})" for p, e in editors.items()))


def _module_problem(cell: Cell) -> str | None:
    architecture = architecture_of(cell)
    try:
        found = architecture.target_modules(cell.settings.modules)
    except ValueError as error:
        last = architecture.layers - 1
        return f"model {cell.model.name}, layers 0 to {last}: {error}"
    active = getattr(cell.settings, "active_modules", None)
    if active is not None and active > len(found):
        return (
            f"model {cell.model.name}: active_modules {active} of {len(found)} target modules "
            f"cannot be edited; set it to at most {len(found)}, or leave it out for half of them"
        )
    return None


def _lengths(cell: Cell) -> tuple[float, float]:
    """Mean tokens of a prompt with its answer, and of the answer, from the first edits."""
    edits = cell.source().draw(cell.dataset.split, min(cell.n_edits, SAMPLE), seed=cell.seed)
    if not edits:
        return TOKENS, ANSWER_TOKENS
    per_token = CHARACTERS_PER_TOKEN
    answers = sum(1 + len(edit.target) / per_token for edit in edits) / len(edits)
    prompts = sum(1 + len(edit.prompt) / per_token for edit in edits) / len(edits)
    return prompts + answers, answers


def _corpus(cell: Cell, readable: bool) -> tuple[int, float]:
    """Documents that key covariance is of, and their mean tokens once they are cut."""
    most = float(cell.statistics.max_tokens)
    sample = read_corpus(cell).sample if readable else ()
    if not sample:
        return cell.statistics.documents, min(most, DOCUMENT_TOKENS)
    lengths = [min(most, 1 + size / CHARACTERS_PER_TOKEN) for size in sample]
    return read_corpus(cell).documents, sum(lengths) / len(lengths)
