"""Cell specs: what a grid says of one cell, as plain data, for everything that plans and runs it.

Names of grid, model, dataset and variant are labels: they say where a cell's results are shown, and
change no number. What the spec resolves to is in `pipeline.plan.cells`, what its data hold in
`pipeline.plan.cell_data`, what tells it from others in `pipeline.plan.cell_keys`, and why it may
not run in `pipeline.plan.checks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import TypeVar

from pipeline.config.grid import (
    AnswersEntry,
    CovarianceEntry,
    DatasetEntry,
    EditorEntry,
    EvalDataEntry,
    ModelEntry,
    StreamEntry,
    WildEntry,
)
from pipeline.config.resources import ResourcesEntry
from rledit.editors import editor_class
from rledit.protocols import protocol
from rledit.stream import checkpoints
from rledit.written_answers import sampled


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """One editor on one model, dataset, stream and seed, as a grid's entries describe it.

    Attributes:
        also_after: Batches of the stream after which it is scored as well, because a shorter
            stream of the grid ends there.
        known: Of real facts, the file that says which of them the unedited model knows; empty until
            the model is asked. No part of the identity: model and data say it already.
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
    scored_edits: int | None = None
    threads: int
    statistics: CovarianceEntry
    measurements: tuple[str, ...] = ()
    material: EvalDataEntry = field(default_factory=EvalDataEntry)
    resources: ResourcesEntry = field(default_factory=ResourcesEntry)
    keep_edited: bool = False
    answers: AnswersEntry = field(default_factory=AnswersEntry)
    wild: WildEntry = field(default_factory=WildEntry)
    known: str = ""

    @property
    def n_edits(self) -> int:
        """Edits in the stream."""
        return self.stream.n_batches * self.stream.batch_size

    @property
    def scored_places(self) -> tuple[int, ...]:
        """Places in the stream of the edits that are scored."""
        if self.scored_edits is None:
            return tuple(range(self.n_edits))
        return tuple(sampled(self.n_edits, self.scored_edits, self.seed))

    @property
    def writes_freely(self) -> bool:
        """Whether a protocol wants free answers."""
        return any("free" in protocol(name).asks for name in self.protocols)

    @property
    def judged(self) -> bool:
        """Whether a judge is to score free answers after the run."""
        return any(protocol(name).judged for name in self.protocols)

    @property
    def stream_name(self) -> str:
        """The stream as ``batches x edits per batch``."""
        return f"{self.stream.n_batches}x{self.stream.batch_size}"

    @property
    def points(self) -> tuple[int, ...]:
        """Batches of the stream after which everything edited so far is scored."""
        own = checkpoints(self.stream.n_batches, self.checkpoints)
        return tuple(sorted({*own, *self.also_after}))

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
        """The cell's name for people."""
        parts = [self.grid, self.model.name, self.dataset.name, self.label, self.stream_name]
        return "/".join([*parts, f"seed{self.seed}"])


_Cell = TypeVar("_Cell", bound=CellSpec)
_Found = TypeVar("_Found")


def once(find: Callable[[_Cell], _Found]) -> Callable[[_Cell], _Found]:
    """`find`, which runs once for a cell; what it found stays with the cell.

    It goes with the cell to the workers: they need not read again what the driver has read. A cell
    made by `dataclasses.replace` starts with nothing.
    """
    name = f"_{find.__module__}.{find.__name__}"

    @wraps(find)
    def found(cell: _Cell) -> _Found:
        known = vars(cell)
        if name not in known:
            known[name] = find(cell)
        result: _Found = known[name]
        return result

    return found
