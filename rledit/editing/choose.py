"""The editor for some facts: each candidate is tried on a few of them, on the model at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rledit.calibration import CalibrationError
from rledit.editing.host import Host
from rledit.editing.methods import Method, candidates
from rledit.editing.supplies import Supplies
from rledit.editing.writing import Tell, write
from rledit.finite import NonFiniteError
from rledit.records import Edit

TRIED = 12
"""Facts that a candidate is tried on."""
_PASSES = 4


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
            f"{self.method.editor}: {100 * self.took:.0f} % of {TRIED} facts at most, "
            f"{100 * self.rephrases:.0f} % of rephrases, {100 * self.kept:.0f} % of known facts kept"
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

    def best(
        self, edits: Sequence[Edit], settings: Mapping[str, Any] | None, floor: float
    ) -> tuple[Method, str]:
        """The candidate that does best on a sample of some facts, and why.

        Args:
            edits: The facts.
            settings: What the user sets, of every candidate that has such a setting.
            floor: Share of the known facts that is to be kept.

        Raises:
            CalibrationError: No candidate changes the model's answers.
        """
        stride = max(1, len(edits) // TRIED)
        sample = list(edits[::stride][:TRIED])
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
        return best.method, "; ".join(trial.words for trial in trials)

    def _trial(self, method: Method, sample: Sequence[Edit], floor: float) -> Trial:
        before = list(self._host.shown)
        try:
            short = replace(method, passes=min(_PASSES, method.passes))
            written, found = write(self._host, short, sample, self._supplies, {}, floor)
        finally:
            self._host.show(before)
        asked = sum(len(f.edit.rephrases) for f in found)
        return Trial(
            method=method,
            took=sum(f.took for f in found) / max(1, len(found)),
            rephrases=sum(f.rephrases for f in found) / max(1, asked),
            kept=written.after.share,
        )
