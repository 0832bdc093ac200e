"""Calibrate an editor's step on one batch, so that its edits neither vanish nor ruin the model.

A shift is linear in the step as long as nothing is trained: it is captured and solved once, with
step 1, and scaled for every candidate, which then costs one scoring pass. Candidates are the
decades from 1e-7 to 0.1, more of them where the best lies at an end, and then 1, 2, 5 of every
decade around the best. Each is scored on the batch's own prompts, rephrases and unrelated prompts
by token accuracy (unrelated prompts against the unedited model's answers).

The choice is the smallest step with half of the largest gain in the mean of these scores. The best
step of one batch is too large for a stream: what one batch does to unrelated prompts adds up over
the batches, what it does to its own prompts does not. Where no step turns an answer for the better,
the same rule takes the likelihood of the targets in place of the scores, with a warning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from rledit.editors import editor_class
from rledit.editors.base import Editor
from rledit.editors.moment_editor import MomentEditor, Proposal
from rledit.editors.own_prefixes import fresh_prefix_cache
from rledit.errors import UserError
from rledit.lazy_torch import torch
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.protocols.reading import Reading, read
from rledit.records import Edit
from rledit.shift import LowRankShift
from rledit.step_size import AUTO
from rledit.tokenization import EditBatch

logger = logging.getLogger(__name__)

RULE = "half of the largest gain, 1"
"""Name and version of the rule: another one is another choice."""
PROTOCOL = "token_accuracy"
LEAST_EDITS = 10
"""Edits of a calibration batch at least: on fewer, one answer more or less decides."""
FEWEST_EDITS = 5
"""Edits without which nothing is calibrated, where batches are as large; a pool may be small."""
SHARE = 0.5
DECADES = range(-7, 0)
LOWEST, HIGHEST = -12, 4  # decades up to which the grid is extended
SCORES = ("efficacy", "generalization", "specificity_self")

Draw = Callable[[Editor, int, int], Sequence[EditBatch]]
Measure = Callable[["Candidate"], float]

# What shapes training only: the shift of a network that is the identity does not depend on it.
_TRAINING = frozenset(
    {
        "rank", "n_blocks", "init_std", "transition", "optimise", "train_steps",
        "trajectory_batches", "trajectories_per_step", "meta_lr", "scalar_lr_factor",
        "max_grad_norm", "loc_coef", "reg_coef", "decay", "depth", "discount",
        "update_moments_while_editing", "moments_scope", "seed", "retrain_every",
        "retrain_batches", "regularisation_gradient", "locality_gradient", "clipping",
        "kl_reference", "step_form", "drawing", "patience", "validate_every", "min_improvement",
        "validation_batches", "warmup_steps", "weight_decay", "average", "loc_warmup",
        "step_search", "augment", "schedule", "window_share", "prompt_coef",
    }
)  # fmt: skip


class CalibrationError(UserError, ValueError):
    """A step that cannot be calibrated, with what to do instead."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One step and what it does to the batch.

    Attributes:
        step: The step; 0 is the unedited model.
        efficacy, generalization, specificity_self: Percent; None where the batch has no such
            prompt.
        nll: Mean negative log-likelihood of the targets behind prompts and rephrases, nats a token.
        weight_change: Norm of the shifts over the norm of the edited matrices.
    """

    step: float
    efficacy: float | None
    generalization: float | None
    specificity_self: float | None
    nll: float
    weight_change: float

    @property
    def mean(self) -> float:
        """Mean of the scores that there are."""
        found = [v for name in SCORES if (v := getattr(self, name)) is not None]
        return sum(found) / len(found)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A calibrated step and how it was found.

    Attributes:
        config: The editor's configuration with the step in it.
        setting: Name of the setting.
        step: Its value.
        unedited: The batch's scores before editing.
        candidates: All steps that were tried, ascending.
        edits: Edits of the batch.
        warning: What to know before trusting the step; "" if nothing.
    """

    config: Any
    setting: str
    step: float
    unedited: Candidate
    candidates: tuple[Candidate, ...]
    edits: int
    warning: str = ""

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON, but for the configuration."""
        return {
            "setting": self.setting,
            "step": self.step,
            "rule": RULE,
            "protocol": PROTOCOL,
            "edits": self.edits,
            **({"warning": self.warning} if self.warning else {}),
            "unedited": _plain(self.unedited),
            "candidates": [_plain(c) for c in self.candidates],
        }


def needs_calibration(editor: type[Editor], config: Any) -> bool:
    """Whether the configuration's step is still `auto`."""
    setting = editor.step_setting
    return setting is not None and getattr(config, setting) == AUTO


def calibrate(
    model: EditableModel,
    editor: str | type[Editor],
    config: Any,
    edits: Sequence[Edit] | EditBatch,
    training_data: Draw | None = None,
) -> Calibration:
    """Find the step of an editor that has it on `auto`.

    The model is the same before and after, and so is the result for the same arguments.

    Args:
        model: The model, unedited.
        editor: The editor's name or class.
        config: Its configuration, whose step is `auto`; its modules are the model's.
        edits: One batch that is neither trained on nor scored, as edits or tokenised.
        training_data: ``training_data(editor, n, seed)`` gives `n` training batches, for an editor
            that warms up on some.

    Raises:
        CalibrationError: The editor has no step on `auto`, or no step in reach changes an answer.
    """
    cls = editor_class(editor) if isinstance(editor, str) else editor
    setting = cls.step_setting
    if setting is None or not issubclass(cls, MomentEditor):
        raise CalibrationError(f"editor {cls.name!r} has no step that could be calibrated")
    if not needs_calibration(cls, config):
        raise CalibrationError(
            f"editor {cls.name!r} has {setting} {getattr(config, setting)!r}: only auto is "
            "calibrated"
        )
    unit = cls(model, replace(config, **{setting: 1.0}))
    if training_data is not None and "training_data" in cls.needs_of(config):
        unit.load_training_data(partial(training_data, unit))
    with fresh_prefix_cache(model), torch.no_grad():
        batch = edits
        if not isinstance(batch, EditBatch):
            with unit.asked_as_validated():
                batch = unit.encode(batch)
        trial = _Trial(model, unit, batch)
        step, warning = _search(trial, cls.name)
    if warning:
        logger.warning("%s", warning)
    logger.info("%s: %s calibrated to %g", cls.name, setting, step)
    return Calibration(
        config=replace(config, **{setting: step}),
        setting=setting,
        step=step,
        unedited=trial.unedited,
        candidates=trial.found,
        edits=len(batch.edit),
        warning=warning,
    )


def shift_settings(editor: type[Editor], config: Any) -> dict[str, Any]:
    """What the shift of a batch depends on beside model and batch, before anything is trained.

    Configurations that agree in it are calibrated to the same step. Hypernetwork editors with the
    same update are one kind: their training is left out.
    """
    younger = getattr(type(config), "younger", {})
    # Steps that were calibrated before there was a setting are still those of its default.
    kept = {k: v for k, v in asdict(config).items() if k not in younger or v != younger[k]}
    kept.pop(str(editor.step_setting), None)
    conventions = getattr(config, "conventions", None)
    if conventions is None:
        return {"editor": editor.name, **kept}
    chosen = asdict(conventions())
    kept = {k: v for k, v in kept.items() if k not in _TRAINING and k not in chosen}
    if getattr(editor, "seed_decides_start", False) and config.seed:
        kept["seed"] = config.seed  # without it, a step is that of seed 0
    kept.pop("reference", None)
    chosen = {k: v for k, v in chosen.items() if k not in _TRAINING}
    return {"editor": "hypernetwork", **kept, "conventions": chosen}


def choose(
    unedited: Candidate, candidates: Sequence[Candidate], by: Measure | None = None
) -> float | None:
    """The smallest step with half of the largest gain; None where none gains.

    Args:
        unedited: The scores before editing.
        candidates: Steps with their scores.
        by: What is gained; None: in the mean of the scores.
    """
    by = by or _mean
    gain = max(map(by, candidates)) - by(unedited)
    if not gain > 0:
        return None
    enough = by(unedited) + SHARE * gain - 1e-9
    return min(c.step for c in candidates if by(c) >= enough)


def _mean(candidate: Candidate) -> float:
    return candidate.mean


class _Trial:
    """Tries steps on one batch: the shift is made once."""

    def __init__(self, model: EditableModel, unit: MomentEditor, batch: EditBatch) -> None:
        self._model, self._batch = model, batch
        self._before = model.weights.state_dict()
        self._protocol = protocol(PROTOCOL)
        self._unrelated: list[Reading] = []
        self.unedited = self._score(0.0, 0.0)
        unit.warm_up()
        self._proposal: Proposal = unit.propose(batch)
        matrices = [float(model.weights.read(name).norm()) for name in model.modules]
        size = float(self._proposal.squared_norm().detach().clamp_min(0).sqrt())
        self._change = size / max(math.hypot(*matrices), 1e-30)
        self._known: dict[tuple[int, int], Candidate] = {}

    def at(self, digit: int, decade: int) -> Candidate:
        """The scores with the step digit·10^decade."""
        place = (digit, decade)
        if place not in self._known:
            step = float(f"{digit}e{decade}")
            for name, shift in self._proposal.shifts.items():
                self._model.weights.add(name, LowRankShift(shift.left, shift.right * step))
            try:
                self._known[place] = self._score(step, step * self._change)
            finally:
                self._model.weights.load_state_dict(self._before)
        return self._known[place]

    def _score(self, step: float, change: float) -> Candidate:
        kinds = (self._batch.edit, self._batch.equivalent, self._batch.unrelated)
        readings = read(self._model, [sample for kind in kinds for sample in kind.samples])
        parts = iter(readings)
        own, rephrased, unrelated = ([next(parts) for _ in kind.samples] for kind in kinds)
        self._unrelated = self._unrelated or unrelated
        return Candidate(
            step=step,
            efficacy=_percent([self._protocol.score(r) for r in own]),
            generalization=_percent([self._protocol.score(r) for r in rephrased]),
            specificity_self=_percent(
                [
                    self._protocol.agreement(now, before)
                    for now, before in zip(unrelated, self._unrelated, strict=True)
                ]
            ),
            nll=sum(r.nll for r in (*own, *rephrased)) / len((*own, *rephrased)),
            weight_change=change,
        )

    @property
    def found(self) -> tuple[Candidate, ...]:
        """All steps tried so far, ascending."""
        return tuple(sorted(self._known.values(), key=lambda c: c.step))


def _search(trial: _Trial, name: str) -> tuple[float, str]:
    """The step, and what to know of it."""
    step = _by(trial, _mean)
    if step is not None:
        return step, ""
    answers = trial.found
    steps = f"{answers[0].step:g} to {answers[-1].step:g}"
    alike = all(_alike(c, trial.unedited) for c in answers)
    what = "changes an answer" if alike else "gains"

    def likelihood(candidate: Candidate) -> float:
        """Of the targets, where the scores are no worse than before."""
        fine = candidate.mean >= trial.unedited.mean and math.isfinite(candidate.nll)
        return -candidate.nll if fine else -math.inf

    step = _by(trial, likelihood)
    problem = f"editor {name!r}: no step from {steps} {what} on the calibration batch"
    if step is None:
        raise CalibrationError(
            f"{problem}, whose answers are right to {trial.unedited.efficacy:.1f} % before "
            "editing; take other modules or a larger batch, or give the step as a number"
        )
    return step, f"{problem}; {step:g} is chosen by the likelihood of its targets"


def _by(trial: _Trial, by: Measure) -> float | None:
    """Decades first, more of them as long as the best is at an end, then finer around it."""
    low, high = DECADES[0], DECADES[-1]
    while True:
        tried = {decade: trial.at(1, decade) for decade in range(low, high + 1)}
        best = max(tried, key=lambda decade: (by(tried[decade]), -decade))
        if not by(tried[best]) > by(trial.unedited):
            # Nothing gains. The largest step that changes nothing is below the first that does.
            weak = [d for d in tried if _alike(tried[d], trial.unedited)]
            best = max(weak, default=low)
        if low < best < high:
            break
        low, high = low - (best == low), high + (best == high)
        if low < LOWEST or high > HIGHEST:
            break
    for digit, decade in ((2, best - 1), (5, best - 1), (2, best), (5, best)):
        trial.at(digit, decade)
    return choose(trial.unedited, trial.found, by)


def _alike(a: Candidate, b: Candidate) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in SCORES)


def _percent(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return 100 * sum(known) / len(known) if known else None


def _plain(candidate: Candidate) -> Mapping[str, Any]:
    found = {**asdict(candidate), "mean": candidate.mean}
    return {k: v if k == "step" or v is None else float(f"{v:.6g}") for k, v in found.items()}
