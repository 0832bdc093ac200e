"""Edit a loaded model with facts.

>>> from rledit import edit
>>> result = edit(model, [{"prompt": "The mayor of Oslo is", "target": "Anne Lindboe"}])
>>> print(result)          # before and after, and what was lost
>>> result.undo()
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rledit.datasets.rows import RowFile, open_rows
from rledit.editing.host import Host, HostError
from rledit.editing.ledger import Ledger
from rledit.editing.result import EditResult
from rledit.editing.session import BATCH_SIZE, FLOOR, Session
from rledit.editing.writing import Tell, silent
from rledit.records import Edit

_KEPT = "_rledit_session"


def edit(
    model: nn.Module,
    facts: str | os.PathLike[str] | RowFile | Iterable[Edit | Mapping[str, Any]],
    tokenizer: Any | None = None,
    *,
    editor: str | None = None,
    settings: Mapping[str, Any] | None = None,
    ledger: str | os.PathLike[str] | None = None,
    batch_size: int = BATCH_SIZE,
    passes: int | None = None,
    floor: float = FLOOR,
    skip_bad_rows: bool = False,
    tell: Tell = silent,
) -> EditResult:
    """Edit a model in place.

    Args:
        model: A causal language model of transformers.
        facts: Mappings with `prompt` and `target`, and, where there, `subject`, `rephrases`,
            `locality`, `old_target`; or rows of any known schema; or a file of them (JSON, JSONL,
            CSV).
        tokenizer: Its tokenizer; None: the one that lies where the model was loaded from.
        editor: An editor's name; None: the one that does best on this model and these facts.
        settings: Settings of it.
        ledger: A folder that keeps every batch; None: in memory, as long as the model.
        batch_size: Facts of a batch at most: what is taken back together.
        passes: Passes over a batch at most.
        floor: Share of the facts that the model knows which is to be kept.
        skip_bad_rows: Leave rows out that cannot be edited, in place of an error.
        tell: Told what is going on.

    Raises:
        FactsError: Rows cannot be edited; names them all.
        LedgerError: The ledger belongs to another model.
    """
    if isinstance(facts, str | os.PathLike):
        facts = open_rows(os.fspath(facts))
    session = session_of(model, tokenizer, ledger, tell)
    return session.edit(
        facts,
        editor=editor,
        settings=settings,
        batch_size=batch_size,
        passes=passes,
        floor=floor,
        skip_bad_rows=skip_bad_rows,
    )


def session_of(
    model: nn.Module,
    tokenizer: Any | None = None,
    ledger: str | os.PathLike[str] | None = None,
    tell: Tell = silent,
) -> Session:
    """The session of a loaded model: the same one as long as it is of the same ledger.

    Raises:
        HostError: The model has edits that the ledger does not have.
        LedgerError: The ledger belongs to another model.
    """
    host = Host.of(model, tokenizer)
    known: Session | None = vars(model).get(_KEPT)
    place = None if ledger is None else Path(ledger)
    if known is not None:
        here = known.ledger.folder if isinstance(known.ledger, Ledger) else None
        if place is None or (here is not None and here.resolve() == place.resolve()):
            known.tell = known.supplies.tell = tell
            return known
        if known.ledger.in_force and here is None:
            raise HostError(
                f"the model has edits that {place} does not have; take them back first (undo), or "
                "load the model again"
            )
    kept = None
    if place is not None:
        kept = Ledger(place) if Ledger.is_at(place) else Ledger.create(place, host.record())
    session = vars(model)[_KEPT] = Session(host, kept, tell=tell)
    return session
