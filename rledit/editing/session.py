"""Batches of facts into a model: written in passes, judged, kept in a ledger, taken back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from rledit.datasets.rows import RowFile
from rledit.editing.choose import Chooser
from rledit.editing.deltas import Delta, distance
from rledit.editing.facts import (
    edit_of,
    plain_fact,
    rows_of,
    same_fact,
    screen,
    with_subject,
)
from rledit.editing.host import Host
from rledit.editing.judge import FactResult, Judge, scores_of, took
from rledit.editing.ledger import Batch, Ledger, LedgerError
from rledit.editing.memory import MemoryLedger
from rledit.editing.methods import Method, candidates, method_of
from rledit.editing.result import EditResult, Undone
from rledit.editing.supplies import Supplies
from rledit.editing.writing import Tell, Written, silent, write
from rledit.model import EditableModel
from rledit.records import Edit
from rledit.superseded import Facts

BATCH_SIZE = 50
FLOOR = 0.9
"""Share of the known facts that a batch may not fall below: a pass that would is taken back."""
_EARLIER = 100  # facts of earlier batches that are asked again


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A fact that an earlier batch has written, and the model still gives."""

    edit: Edit
    batch: int


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How batches are written.

    Attributes:
        method: The editor, calibrated.
        floor: Share of the known facts below which a pass is taken back.
        chosen: Whether the editor was chosen here, not named by the user.
        notes: What to know of a fact, by the id of its edit.
    """

    method: Method
    floor: float
    chosen: bool
    notes: Mapping[str, str]


class Session:
    """Edits one model, batch by batch.

    Args:
        host: The model.
        ledger: Where batches are kept; None: in memory, as long as the model.
        supplies: What editors and judgement need beside facts, cached per model.
        tell: Told what is going on.
    """

    def __init__(
        self,
        host: Host,
        ledger: Ledger | None = None,
        supplies: Supplies | None = None,
        tell: Tell = silent,
    ) -> None:
        self.host = host
        self.ledger: Ledger | MemoryLedger = ledger or MemoryLedger()
        self.supplies = supplies or Supplies(host, tell=tell)
        self.tell = tell
        if ledger is not None:
            ledger.require_model(host.fingerprint)
            host.show(ledger.deltas())

    def edit(
        self,
        facts: RowFile | Iterable[Edit | Mapping[str, Any]],
        *,
        editor: str | None = None,
        settings: Mapping[str, Any] | None = None,
        format: str = "auto",
        batch_size: int = BATCH_SIZE,
        passes: int | None = None,
        floor: float = FLOOR,
        skip_bad_rows: bool = False,
    ) -> EditResult:
        """Write facts into the model.

        Args:
            facts: Rows of a file, edits, or mappings in a known schema.
            editor: The editor's name; None: the one that does best here, see `choose`.
            settings: What the user sets of it.
            format: Name of a schema, or ``auto``.
            batch_size: Facts of a batch at most.
            passes: Passes over a batch at most; None: as the editor has it.
            floor: Share of the known facts below which a pass is taken back.
            skip_bad_rows: Leave rows out that cannot be edited.

        Raises:
            FactsError: Rows cannot be edited; names them all.
        """
        began = time.monotonic()
        if editor is not None:  # what makes no sense is refused before any work
            _ = method_of(self.host.model, editor, settings)
        else:
            _ = candidates(self.host.model, settings)
        opened = self.host.open()
        screened = screen(rows_of(facts), opened.encoder, format)
        screened.require(skip_bad_rows)
        earlier, owners = self._earlier()
        edits, skipped, notes = self._recognised(screened.edits, earlier, owners, opened)
        knowledge = self.supplies.knowledge("telling")
        names = knowledge.apart_from([*earlier, *edits])
        cost_before = knowledge.cost(opened, names)
        standing = self._standing(earlier, edits)
        held = took(opened, standing)
        method, choice = self._method(editor, settings, passes, floor)
        plan = BatchPlan(method=method, floor=floor, chosen=editor is None, notes=notes)
        results: list[FactResult] = []
        numbers: list[int] = []
        with self.ledger.writing():
            for first in range(0, len(edits), batch_size):
                part = edits[first : first + batch_size]
                batch, found = self._batch(part, plan)
                numbers.append(batch.number)
                results += found
                self.tell(
                    f"batch {batch.number}: {sum(f.took for f in found)} of {len(found)} facts"
                )
        opened = self.host.open()
        now = took(opened, standing)
        return EditResult(
            facts=tuple(results),
            skipped=tuple((s.edit, s.batch) for s in skipped),
            bad=screened.bad,
            repeated=screened.repeated,
            made_rephrases=screened.made_rephrases,
            method=method,
            choice=choice,
            batches=tuple(numbers),
            cost_before=cost_before,
            cost_after=knowledge.cost(opened, names),
            lost=tuple(f"{e.prompt} {e.target}" for e in knowledge.lost(opened, names)),
            earlier=(sum(now), sum(held), len(standing)),
            seconds=time.monotonic() - began,
            session=self,
        )

    def undo(self, numbers: Sequence[int], recompute: bool = False) -> Undone:
        """Take batches back.

        The model becomes the unedited one with the changes of the batches that remain, in their
        order: what the batches taken back have added is not subtracted, it is never added.

        Args:
            numbers: Their numbers.
            recompute: Compute later batches anew, on a model that never had those; else they are
                kept as they are.

        Raises:
            LedgerError: There is no such batch.
        """
        with self.ledger.writing():
            gone = sorted({self.ledger.batch(n).number for n in numbers})
            gone = [n for n in gone if self.ledger.batch(n).undone is None]
            if not gone:
                raise LedgerError("these batches are taken back already")
            later = [b for b in self.ledger.in_force if b.number > gone[0] and b.number not in gone]
            before = {b.number: self.ledger.delta(b) for b in later}
            changes: dict[int, tuple[dict[str, Any], Delta, Mapping[str, Tensor]]] = {}
            if recompute and later:
                changes = self._recomputed(gone, later)
            self.ledger.rewrite(gone, changes)
            self.host.show(self.ledger.deltas())
        opened = self.host.open()
        taken = [edit_of(fact) for n in gone for fact in self.ledger.batch(n).facts]
        remaining, _ = self._earlier()
        held = took(opened, remaining)
        return Undone(
            batches=tuple(gone),
            later=tuple(b.number for b in later),
            recomputed=recompute and bool(later),
            moved={n: distance(before[n], change[1]) for n, change in changes.items()},
            facts=tuple(Judge(opened, taken).results(opened)),
            remaining=(sum(held), len(remaining)),
        )

    def _method(
        self,
        editor: str | None,
        settings: Mapping[str, Any] | None,
        passes: int | None,
        floor: float,
    ) -> tuple[Method, str]:
        chooser = Chooser(self.host, self.supplies, self.tell)
        last = self.ledger.in_force[-1].record if self.ledger.in_force else {}
        if editor is None and not settings and last.get("chosen"):
            method, choice = Method.of(last["method"]), "goes on with the ledger's editor"
        elif editor is None:
            method, choice = chooser.best(settings, floor)
        else:
            method, choice = method_of(self.host.model, editor, settings), "named by the user"
        method = chooser.calibrated(method)
        return (method if passes is None else replace(method, passes=passes)), choice

    def _batch(self, edits: Sequence[Edit], plan: BatchPlan) -> tuple[Batch, list[FactResult]]:
        before = list(self.host.shown)
        try:
            written, found, record = self._write(edits, plan)
            batch = self.ledger.append(record, written.delta, written.state)
        except BaseException:
            # Not in the ledger, so not in the model either.
            self.host.show(before)
            raise
        # The same terms in the same order: the passes of a batch are one change now.
        self.host.shown = [*before, written.delta]
        return batch, found

    def _write(
        self, edits: Sequence[Edit], plan: BatchPlan
    ) -> tuple[Written, list[FactResult], dict[str, Any]]:
        began = time.monotonic()
        method = plan.method
        if method.needs_subject:
            edits = [with_subject(edit) for edit in edits]
        state = self._state_for(method)
        written, found = write(
            self.host,
            method,
            edits,
            self.supplies,
            state,
            plan.floor,
            self.tell,
            beside=self._standing(self._earlier()[0], edits),
        )
        found = [replace(f, note=plan.notes.get(f.edit.edit_id, "")) for f in found]
        record = {
            "method": method.record(),
            "chosen": plan.chosen,
            "floor": plan.floor,
            "facts": [plain_fact(f.edit) | {"result": f.record()} for f in found],
            "scores": scores_of(found),
            "metrics": written.metrics,
            "passes": written.passes,
            "choosing": {"before": vars(written.before), "after": vars(written.after)},
            "rank": written.delta.rank,
            "dense": written.delta.dense,
            "seconds": round(time.monotonic() - began, 2),
        }
        return written, found, record

    def _state_for(self, method: Method) -> Mapping[str, Tensor]:
        """Running statistics that the last batch of the method has left."""
        for batch in reversed(self.ledger.in_force):
            if Method.of(batch.record["method"]).key == method.key:
                return self.ledger.state(batch)
        return {}

    def _recomputed(
        self, gone: Sequence[int], later: Sequence[Batch]
    ) -> dict[int, tuple[dict[str, Any], Delta, Mapping[str, Tensor]]]:
        """Later batches computed anew, on the batches before them that remain."""
        kept = MemoryLedger()
        for batch in self.ledger.in_force:
            if batch.number < gone[0]:
                kept.append(batch.record, self.ledger.delta(batch), self.ledger.state(batch))
        self.host.show(kept.deltas())
        inner = Session(self.host, None, self.supplies, self.tell)
        inner.ledger = kept
        changes: dict[int, tuple[dict[str, Any], Delta, Mapping[str, Tensor]]] = {}
        try:
            for batch in later:
                plan = BatchPlan(
                    method=Method.of(batch.record["method"]),
                    floor=batch.record["floor"],
                    chosen=batch.record["chosen"],
                    notes={f.get("edit_id", ""): f["result"]["note"] for f in batch.facts},
                )
                new, _ = inner._batch([edit_of(fact) for fact in batch.facts], plan)
                changes[batch.number] = (dict(new.record), kept.delta(new), kept.state(new))
                self.tell(f"batch {batch.number} computed anew")
        except BaseException:
            self.host.show(self.ledger.deltas())
            raise
        return changes

    def _earlier(self) -> tuple[list[Edit], list[int]]:
        """Facts of the batches in force, with their batches."""
        pairs = [(edit_of(f), b.number) for b in self.ledger.in_force for f in b.facts]
        return [edit for edit, _ in pairs], [number for _, number in pairs]

    def _recognised(
        self,
        edits: Sequence[Edit],
        earlier: Sequence[Edit],
        owners: Sequence[int],
        opened: EditableModel,
    ) -> tuple[list[Edit], list[Skipped], dict[str, str]]:
        """Facts that are to be written; those that the model has from an earlier batch; notes."""
        known = same_fact(edits, earlier)
        holds = took(opened, edits) if known else []
        kept: list[Edit] = []
        skipped: list[Skipped] = []
        notes: dict[str, str] = {}
        for i, edit in enumerate(edits):
            # Rows of several sessions are numbered alike.
            edit = replace(edit, edit_id=f"{len(self.ledger.batches) + 1}/{edit.edit_id}")
            place = known.get(i)
            if place is not None:
                said, number = earlier[place].target, owners[place]
                alike = said.strip().casefold() == edit.target.strip().casefold()
                if alike and holds[i]:
                    skipped.append(Skipped(edit=edit, batch=number))
                    continue
                notes[edit.edit_id] = (
                    f"batch {number} wrote it, and the model had lost it"
                    if alike
                    else f"batch {number} said {said!r}; this is the later word"
                )
            kept.append(edit)
        return kept, skipped, notes

    def _standing(self, earlier: Sequence[Edit], edits: Sequence[Edit]) -> list[Edit]:
        """A sample of the earlier facts that no later one and none of these replaces."""
        known = Facts([*earlier, *edits])
        n = len(known.edits)
        standing = [edit for i, edit in enumerate(earlier) if known.last_word(i, n) == i]
        stride = max(1, -(-len(standing) // _EARLIER))
        return standing[::stride]
