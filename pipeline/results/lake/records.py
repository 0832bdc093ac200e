"""Records that a cell hands to the lake when it ends; plain Python, so any process can build
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pipeline.results.lake.key_versions import KEY_VERSION

Status = Literal["done", "failed", "skipped"]
SCORES = ("efficacy", "generalization", "specificity", "specificity_self")

BARE = "bare"
INSTRUCTED = " with instruction"
SHUFFLED = "shuffled"

# A table is given as rows, or as columns of equal length.
TableRows = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class CellAddress:
    """Where a cell's results are shown; these columns stand in every row of every table.

    The key tells what was computed. Of the rest, names of grid, variant, model and dataset and the
    scale are labels: a cell may have several addresses (see `pipeline.results.lake.addresses`).

    Attributes:
        cell_key: hash of the cell's identity.
        variant: a named departure from the editor's defaults, or "".
        scale: "world", "proxy" or "full": which kind of model the numbers are about, see
            `scale_of`. Grids and rows of earlier versions say "standin" for "proxy".
        batch_size: edits per batch (m of a stream n×m).
        n_batches: batches per stream (n of a stream n×m).
    """

    cell_key: str
    grid: str
    editor: str
    variant: str = ""
    model: str
    dataset: str
    scale: str
    seed: int
    batch_size: int
    n_batches: int

    def __post_init__(self) -> None:
        if self.scale == "standin":
            object.__setattr__(self, "scale", "proxy")


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One finished or failed cell.

    Attributes:
        identity: the settings that change numbers, and nothing else.
        resolved: the complete settings, identity and execution.
        versions: of the libraries and the machine.
        edits: rows (checkpoint, protocol, edit_index, batch_index, edit_id, efficacy,
            generalization, specificity, specificity_self, superseded); scores in percent.
        scores: rows (checkpoint, n_edits, final, protocol, the four mean scores in percent,
            n_scored, n_superseded).
        steps: rows (step, metric, value).
        answers: rows of what the model says in words (see `pipeline.results.lake.schemas`); none
            where nothing was asked.
        free_answers: rows of free answers that a judge is to score; none without `wild_judge`.
        edit_ms: milliseconds per edit; `edit_seconds` is the whole stream's.
        threads: CPU threads per rank. With `ranks` it decides whether two results can be
            expected to agree bitwise.
        started_at: in UTC, as `finished_at`.
    """

    address: CellAddress
    status: Status = "done"
    reason: str | None = None
    identity: Mapping[str, Any]
    key_version: int = KEY_VERSION
    data_hash: str | None = None
    model_hash: str | None = None
    code_version: str
    versions: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    protocols: Sequence[str] = ()
    edits: TableRows = ()
    scores: TableRows = ()
    steps: TableRows = ()
    answers: TableRows = ()
    free_answers: TableRows = ()
    train_seconds: float | None = None
    edit_seconds: float | None = None
    edit_ms: float | None = None
    score_seconds: float | None = None
    peak_memory_gb: float | None = None
    n_edits: int | None = None
    n_contradicting: int | None = None
    threads: int = 1
    ranks: int = 1
    started_at: datetime | None = None
    finished_at: datetime | None = None


def prompt_of(identity: Mapping[str, Any]) -> str:
    """How a cell's prompts were put, by its identity: ``bare``, or in a ``chat`` template.

    Where edits are asked with an instruction, that is said as well: ``bare with instruction``.
    """
    model, dataset = identity.get("model"), identity.get("dataset")
    said = model.get("prompt") if isinstance(model, Mapping) else None
    put = str(said.get("template", BARE)) if isinstance(said, Mapping) else BARE
    told = isinstance(dataset, Mapping) and "instruction" in dataset
    return f"{put}{INSTRUCTED}" if told else put


def order_of(identity: Mapping[str, Any]) -> str:
    """In which order a cell's stream has its edits, by its identity: ``shuffled`` is by lot."""
    dataset = identity.get("dataset")
    return str(dataset.get("order", SHUFFLED)) if isinstance(dataset, Mapping) else SHUFFLED


def imported_words(identity: Mapping[str, Any]) -> str:
    """Which published statistics a cell used, by its identity; "" where it computed its own."""
    used = identity.get("statistics") or {}
    for key, what in (("imported", "key covariance"), ("projections", "projections")):
        if files := used.get(key):
            each = ", ".join(f"{linear} {str(known)[:12]}" for linear, known in files.items())
            return f"{what} imported: {each}"
    return ""


def scale_of(scale: str, checkpoint: object) -> str:
    """The scale of a cell's numbers: a model that was loaded is a real one, whatever its grid says.

    Args:
        scale: What the grid says; ``world`` is its default.
        checkpoint: The model's checkpoint; None for a model that was trained on the spot.
    """
    return "full" if scale == "world" and checkpoint is not None else scale


def remark_in(resolved: Mapping[str, Any]) -> str:
    """What tables must say of a cell, by its complete settings (`results.without_effect`)."""
    return str(resolved.get("remark") or "")


@dataclass(frozen=True, kw_only=True)
class AskedRows:
    """What a cell asks for of the rows of another that has more.

    Attributes:
        protocols: Of its scores.
        n_edits: Edits in its stream.
        batch_size: Edits in each of its batches.
        first: Edits after which its first scores are: none, or one where the rows are of a longer
            stream, as the unedited model is scored there on edits that are not this cell's; nor is
            what is measured there on prompts of the whole stream then shown.
        within: Key of the cell that has the rows.
    """

    protocols: tuple[str, ...]
    n_edits: int
    batch_size: int
    first: int = 0
    within: str


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """A cell as the lake's manifest knows it.

    Attributes:
        address: one of its addresses, with its key.
        stored_key: its key in its files and their names, which is another one where an earlier
            version has written them (see `pipeline.results.lake.key_versions`).
        status: the recorded one, or "incomplete" where a shard that the manifest lists is
            missing or has another size.
        files: per table its name in the lake, rows, bytes and sha256.
        values: the manifest row, with JSON columns decoded.
        asked: of a cell that has no rows of its own, what it asks for of those of another (see
            `pipeline.results.lake.contained`).
    """

    address: CellAddress
    stored_key: str
    status: str
    reason: str | None
    files: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, Any]
    asked: AskedRows | None = None

    @property
    def done(self) -> bool:
        """True if the cell's rows may be read."""
        return self.status == "done"

    @property
    def has_rows(self) -> bool:
        """True of a done cell, and of a failed one that had reached a checkpoint."""
        return self.done or (self.status == "failed" and bool(self.files))
