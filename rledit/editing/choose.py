"""The editor for a model: each candidate is tried on a few shipped facts, on the model at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rledit.calibration import CalibrationError
from rledit.editing.host import Host
from rledit.editing.judge import took
from rledit.editing.methods import Method, candidates
from rledit.editing.supplies import Supplies
from rledit.editing.writing import Tell, write
from rledit.finite import NonFiniteError
from rledit.records import Edit

TRIED = 12
"""Facts that a candidate is tried on."""
_PASSES = 6


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a candidate made of a few facts.

    Attributes:
        method: The candidate, calibrated.
        took: Share of the facts that it wrote.
        rephrases: Share of their rephrases.
        kept: Share of the known facts that the model kept.
    """

    method: Method
    took: float
    rephrases: float
    kept: float

    @property
    def score(self) -> float:
        """What decides: what was written and what was kept, at par; then what carries over."""
        return self.took + self.kept + 0.5 * self.rephrases

    @property
    def words(self) -> str:
        """The trial in a line."""
        return (
            f"{self.method.editor} on {', '.join(self.method.modules)}: {100 * self.took:.0f} % of "
            f"{TRIED} trial facts, {100 * self.rephrases:.0f} % of their rephrases, "
            f"{100 * self.kept:.0f} % of known facts kept"
        )


class Chooser:
    """Chooses and calibrates editors on one model.

    Args:
        host: The model; it is the same before and after.
        supplies: What editors need beside facts.
        tell: Told of every trial.
    """

    def __init__(self, host: Host, supplies: Supplies, tell: Tell) -> None:
        self._host, self._supplies, self._tell = host, supplies, tell

    def calibrated(self, method: Method) -> Method:
        """The method with its step as a number."""
        return self._supplies.calibrated(method)

    def best(self, settings: Mapping[str, Any] | None, floor: float) -> tuple[Method, str]:
        """The candidate that does best on a few edits of facts that ship, and why.

        Args:
            settings: What the user sets, of every candidate that has such a setting.
            floor: Share of the known facts that is to be kept.

        Raises:
            CalibrationError: No candidate changes the model's answers.
        """
        known = self._supplies.chosen(settings, floor)
        if known is not None:
            return known
        sample = self._supplies.real_edits(TRIED)
        trials: list[Trial] = []
        fault: Exception | None = None
        for candidate in candidates(self._host.model, settings):
            try:
                trials.append(self._trial(self.calibrated(candidate), sample, floor))
            except (CalibrationError, NonFiniteError) as error:
                fault = error
                self._tell(f"  {candidate.editor}: {error}")
                continue
            self._tell(f"  tried {trials[-1].words}")
        if not trials:
            raise fault or CalibrationError("there is no editor to try")
        best = max(trials, key=lambda trial: trial.score)
        words = "; ".join(trial.words for trial in trials)
        self._supplies.keep_chosen(settings, floor, best.method, words)
        return best.method, words

    def _trial(self, method: Method, sample: Sequence[Edit], floor: float) -> Trial:
        before = list(self._host.shown)
        self._host.show([])
        try:
            short = replace(method, passes=_PASSES)
            written, _ = write(self._host, short, sample, self._supplies, {}, floor, answers=False)
            opened = self._host.open(method.modules)
            own = took(opened, sample)
            rephrased = took(
                opened, [replace(e, prompt=text) for e in sample for text in e.rephrases[:1]]
            )
        finally:
            self._host.show(before)
        return Trial(
            method=method,
            took=sum(own) / len(own),
            rephrases=sum(rephrased) / max(1, len(rephrased)),
            kept=written.after.share,
        )
