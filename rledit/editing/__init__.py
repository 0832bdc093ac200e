"""Edit a model with facts of one's own: choose an editor, write, judge, keep, take back, take away.

`rledit.edit` is the way in; `Session` is what it opens, and `Ledger` the folder that keeps batches.
"""

from rledit.editing.api import edit, session_of
from rledit.editing.deltas import Delta
from rledit.editing.facts import FactsError, Screened, screen
from rledit.editing.host import Host, HostError
from rledit.editing.judge import FactResult, texts_of
from rledit.editing.ledger import Batch, Ledger, LedgerError, ModelRecord
from rledit.editing.methods import Method, MethodError
from rledit.editing.result import EditResult, Undone
from rledit.editing.session import Session
from rledit.editing.supplies import Supplies

__all__ = [
    "Batch",
    "Delta",
    "EditResult",
    "FactResult",
    "FactsError",
    "Host",
    "HostError",
    "Ledger",
    "LedgerError",
    "Method",
    "MethodError",
    "ModelRecord",
    "Screened",
    "Session",
    "Supplies",
    "Undone",
    "edit",
    "screen",
    "session_of",
    "texts_of",
]
