"""Results of editing and of undoing, for programs as objects and for people as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rledit.datasets.errors import RowError
from rledit.editing.judge import FactResult, scores_of
from rledit.editing.known import Cost
from rledit.editing.methods import Method
from rledit.records import Edit

if TYPE_CHECKING:
    from rledit.editing.session import Session

_SHOWN = 40  # characters of an answer
_LOST = 5  # facts that are named


@dataclass(frozen=True, kw_only=True)
class Undone:
    """What taking batches back did.

    Attributes:
        batches: The batches taken back.
        later: Batches in force that came after the first of them.
        recomputed: Whether these were computed anew.
        moved: Later batch → how far its change is from the one it had, relative to that one.
        facts: The facts of the batches taken back, before and now (both: after taking them back).
        remaining: Facts of the remaining batches that the model gives, of how many.
    """

    batches: tuple[int, ...]
    later: tuple[int, ...]
    recomputed: bool
    moved: Mapping[int, float]
    facts: tuple[FactResult, ...]
    remaining: tuple[int, int]

    def __str__(self) -> str:
        lines = [f"taken back: batch {_numbers(self.batches)}, {len(self.facts)} facts"]
        if self.recomputed:
            moved = ", ".join(f"{n} by {100 * m:.2g} %" for n, m in self.moved.items())
            lines.append(
                "later batches were computed anew, on a model that never had it; their changes "
                f"moved: batch {moved}"
            )
        elif self.later:
            lines.append(
                f"later batches ({_numbers(self.later)}) are kept as they are: they were computed "
                "on a model that had it, and a model that never had it would have got others; "
                "--recompute computes them anew"
            )
        else:
            lines.append("no later batch depends on it: the model is as if it had never been")
        lines += [f"  {f.edit.prompt} … {_cut(f.after)!r}" for f in self.facts[:10]]
        if len(self.facts) > 10:
            lines.append(f"  … and {len(self.facts) - 10} more")
        held, asked = self.remaining
        if asked:
            lines.append(f"of the facts that remain, the model gives {held} of {asked}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class EditResult:
    """What editing some facts did.

    Attributes:
        facts: Every fact that was edited, before and after.
        skipped: Facts that an earlier batch had written and the model gives, with that batch.
        bad: Rows that were left out, each with its reason.
        repeated: Rows that say again what another row says.
        made_rephrases: Facts whose rephrases were made from templates.
        method: The editor and its settings.
        choice: Why it was taken.
        batches: Numbers of the batches that were written.
        cost_before, cost_after: Known facts and perplexity, of a pool that no setting was chosen
            by.
        lost: Known facts that the model does not answer any more, as statements.
        earlier: Facts of earlier batches that the model gives now, that it gave before, and that
            were asked.
        seconds: Wall time.
        session: What made it.
    """

    facts: tuple[FactResult, ...]
    skipped: tuple[tuple[Edit, int], ...]
    bad: tuple[RowError, ...]
    repeated: tuple[RowError, ...]
    made_rephrases: int
    method: Method
    choice: str
    batches: tuple[int, ...]
    cost_before: Cost
    cost_after: Cost
    lost: tuple[str, ...]
    earlier: tuple[int, int, int]
    seconds: float
    session: Session = field(repr=False)

    @property
    def failed(self) -> tuple[FactResult, ...]:
        """The facts that did not take."""
        return tuple(fact for fact in self.facts if not fact.took)

    @property
    def scores(self) -> dict[str, float | None]:
        """Efficacy, generalisation, locality and known facts kept, in percent, and perplexity."""
        known = self.cost_before.known
        return {
            **scores_of(self.facts),
            "known_kept": round(100 * self.cost_after.kept / known, 2) if known else None,
            "perplexity_before": self.cost_before.perplexity,
            "perplexity": self.cost_after.perplexity,
        }

    def undo(self, recompute: bool = False) -> Undone:
        """Take these batches back, see `Session.undo`."""
        return self.session.undo(self.batches, recompute)

    def __str__(self) -> str:
        return "\n".join((*self._fact_lines(), "", *self._summary()))

    def _fact_lines(self) -> list[str]:
        lines: list[str] = []
        for fact in self.facts:
            mark = "✓" if fact.took else "✗"
            lines.append(f"{mark} {fact.edit.prompt}")
            lines.append(
                f"    before {_cut(fact.before)!r}   after {_cut(fact.after)!r}   "
                f"({_log(fact.logprob_before)} → {_log(fact.logprob_after)} nats)"
            )
            if not fact.took:
                lines.append(f"    did not take: {fact.edit.target!r} is not what it says")
            if fact.note:
                lines.append(f"    note: {fact.note}")
        for edit, number in self.skipped:
            lines.append(f"= {edit.prompt} {edit.target}: batch {number} wrote it, and it holds")
        return lines

    def _summary(self) -> list[str]:
        took = len(self.facts) - len(self.failed)
        scores, cost = self.scores, self.cost_after
        lines = [f"edited   {took} of {len(self.facts)} facts in {self.seconds:.0f} s, by "
                 f"{self.method.editor}"]  # fmt: skip
        if (share := scores["generalization"]) is not None:
            made = (
                f" ({self.made_rephrases} facts had none: made from templates)"
                if self.made_rephrases
                else ""
            )
            lines.append(f"rephrase {share:.0f} % of the rephrases give the new answer{made}")
        if (share := scores["locality"]) is not None:
            lines.append(f"locality {share:.0f} % of your unrelated prompts answer as before")
        lines.append(
            f"kept     {cost.kept} of {cost.known} facts that the model knew"
            + (f"; lost, e.g.: {'; '.join(self.lost[:_LOST])}" if self.lost else "")
        )
        lines.append(
            f"language perplexity {self.cost_before.perplexity:.1f} → {cost.perplexity:.1f} on "
            "sentences that ship with the package"
        )
        if self.earlier[2]:
            now, before, asked = self.earlier
            lines.append(
                f"earlier  {now} of {asked} facts of earlier batches hold ({before} before)"
            )
        if self.repeated:
            lines.append(f"repeated {len(self.repeated)} rows say what other rows say")
        if self.bad:
            lines.append(f"left out {len(self.bad)} rows:")
            lines += [f"  row {error.row}: {error.reason}" for error in self.bad]
        if self.failed:
            lines.append(
                f"{len(self.failed)} did not take. Give them again with other words or another "
                "--editor, or with a lower --floor at the price of what the model knows"
            )
        return lines


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _log(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"


def _numbers(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
