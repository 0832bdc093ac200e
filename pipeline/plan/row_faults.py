"""Rows that a cell cannot use, all of them found before anything is computed.

A row concerns a cell where the cell draws it: for its stream, which is scored, from the train pool,
where its editor learns, or for the batch that its step is calibrated on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pipeline.plan.cells import Cell
from rledit.augmentation import may_stand_first
from rledit.datasets.errors import SHOWN_ROWS
from rledit.locate.contexts import Contexts
from rledit.locate.requests import make_requests
from rledit.protocols import protocol
from rledit.records import Edit
from rledit.scoring import questions
from rledit.tokenization import Encoder, Sample, TokenizationError

_NO_SAMPLE = cast(Sample, None)  # nobody looks at it here, and to make one takes PyTorch


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The rows that a cell cannot use.

    Attributes:
        what: Which edits were looked at, e.g. ``the stream``.
        n_edits: How many these are.
        rows: Place of a row, in the order of the draw → what is wrong with it.
    """

    what: str
    n_edits: int
    rows: Mapping[str, tuple[str, ...]]

    @property
    def count(self) -> str:
        """How many rows of how many cannot be used."""
        return f"{len(self.rows):,} of the {self.n_edits:,} edits of {self.what} cannot be used"

    @property
    def lines(self) -> list[str]:
        """The first rows, what is wrong with each, and how many more there are."""
        shown = ["; ".join(reasons) for reasons in list(self.rows.values())[:SHOWN_ROWS]]
        left = len(self.rows) - len(shown)
        return [*shown, f"... and {left:,} more rows"] if left else shown

    def __str__(self) -> str:
        return f"{self.count}: {'; '.join(self.lines)}"


class _Collector:
    """An encoder that notes what breaks the token contract, and goes on."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.found: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def sample(self, prompt: str, answer: str, where: str = "") -> Sample:
        try:
            self._encoder.pair_ids(prompt, answer, where)
        except TokenizationError as error:
            self.found.append(str(error))
        return _NO_SAMPLE


def stream_faults(cell: Cell, encoder: Encoder, edits: Sequence[Edit]) -> Faults:
    """Rows of a cell's stream with a prompt or answer that breaks the token contract.

    All are tokenised that editing, scoring and the cell's measurements look at.
    """
    protocols = [protocol(name) for name in cell.protocols]

    def ask(collector: _Collector, edit: Edit) -> None:
        asked = cast(Encoder, collector)
        questions(asked, edit, protocols, cell.probes, cell.seed)  # type: ignore[arg-type]
        if cell.probes == "drawn":
            _batch(collector, edit)
        if "portability" in cell.measurements:
            for item in edit.consequences:
                text = encoder.asked(item.prompt)
                collector.sample(text, item.answers[0], edit.source or edit.edit_id)

    return _faults("the stream", edits, lambda edit: _collected(encoder, edit, ask))


def edit_faults(what: str, encoder: Encoder, edits: Sequence[Edit]) -> Faults:
    """Rows with any prompt or answer that breaks the token contract, whatever looks at them."""

    def ask(collector: _Collector, edit: Edit) -> None:
        where = edit.source or edit.edit_id
        for prompt in (edit.prompt, *edit.rephrases):
            collector.sample(encoder.asked(prompt), edit.target, where)
        for probe in edit.locality:
            collector.sample(probe.prompt, probe.answer, where)

    return _faults(what, edits, lambda edit: _collected(encoder, edit, ask))


def subject_faults(encoder: Encoder, edits: Sequence[Edit], what: str = "the stream") -> Faults:
    """Rows of a stream or a file whose subject cannot be found in their prompt."""

    def found(edit: Edit) -> Iterator[str]:
        try:
            make_requests(encoder, [edit], Contexts())
        except TokenizationError as error:
            yield str(error)

    return _faults(what, edits, found)


def train_faults(encoder: Encoder, edits: Sequence[Edit], augment: bool = False) -> Faults:
    """Rows that training or calibration draws with a prompt or answer that breaks the token
    contract; with `augment`, in any of the variants that training makes of them."""

    def ask(collector: _Collector, edit: Edit) -> None:
        _batch(collector, edit)
        if augment:
            _variants(collector, edit)

    return _faults("the train pool", edits, lambda edit: _collected(encoder, edit, ask))


def together(what: str, parts: Sequence[Faults]) -> Faults | None:
    """The faults of several looks at edits; None where there are none."""
    rows: dict[str, tuple[str, ...]] = {}
    for part in parts:
        for place, reasons in part.rows.items():
            rows[place] = tuple(dict.fromkeys((*rows.get(place, ()), *reasons)))
    return Faults(what=what, n_edits=max(p.n_edits for p in parts), rows=rows) if rows else None


def _batch(collector: _Collector, edit: Edit) -> None:
    """What `Encoder.batch` takes of an edit."""
    where = edit.source or edit.edit_id
    for prompt in (edit.prompt, *edit.rephrases[:1]):
        collector.sample(collector.asked(prompt), edit.target, where)
    for probe in edit.locality[:1]:
        collector.sample(probe.prompt, probe.answer, where)


def _variants(collector: _Collector, edit: Edit) -> None:
    """What a batch of `rledit.augmentation.augmented` may take beside what `_batch` asks."""
    where = edit.source or edit.edit_id
    for rephrase in edit.rephrases[1:]:
        if may_stand_first(edit, rephrase):
            collector.sample(collector.asked(rephrase), edit.target, where)
    for probe in edit.locality[1:]:
        collector.sample(probe.prompt, probe.answer, where)


def _collected(
    encoder: Encoder, edit: Edit, ask: Callable[[_Collector, Edit], None]
) -> Sequence[str]:
    collector = _Collector(encoder)
    ask(collector, edit)
    return collector.found


def _faults(what: str, edits: Sequence[Edit], check: Callable[[Edit], Iterable[str]]) -> Faults:
    rows = {
        edit.source or edit.edit_id: reasons
        for edit in edits
        if (reasons := tuple(dict.fromkeys(check(edit))))
    }
    return Faults(what=what, n_edits=len(edits), rows=rows)
