"""One batch: an editor goes over its facts in passes, as long as the model keeps what it knew.

A pass goes over the facts that the passes before did not write, and beside them over facts that
the model knows, or has from earlier batches: what an editor writes then is what changes the former
and not the latter. Where the model gives a target and goes on with its last word ("Astanaab"), a
full stop is written behind it.

Other known facts are watched. A pass after which the model answers fewer of these than it may is
taken back and tried with half the step, where the editor has one; else it is the last. The batch
ends with the pass after which the model gives most of its facts. All known facts here are of the
pool that settings are chosen by, see `rledit.editing.known`, and never of the one that results are
told by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from rledit.editing.deltas import Delta
from rledit.editing.host import Host
from rledit.editing.judge import FactResult, Judge, Said
from rledit.editing.known import Cost, Knowledge
from rledit.editing.methods import Method
from rledit.editors import Editor
from rledit.editors.base import State, TrainableEditor
from rledit.editors.moment_editor import MomentEditor
from rledit.finite import NonFiniteError, require_finite_weights
from rledit.locate.covariance import KeyCovariance
from rledit.locate.output_gradients import covariances_of
from rledit.model import EditableModel
from rledit.records import Edit

LARGEST_STATE = 32 << 20
"""Bytes of running statistics that are kept with a batch; an editor with more begins anew."""

_WATCHED = 2  # every second known fact is watched, the others are rehearsed
_REHEARSED = 48  # known facts that a pass goes over, at most
_GROWTH = 1.25
"""By how much a step grows after a pass that wrote no more facts and cost nothing."""
_PATIENCE = 4
"""Passes in a row that write no more facts, after which a batch ends."""
_HALVINGS, _FIRST = 2, 6
"""How often a step may be halved where a pass with it costs too much; the first pass more often."""

Tell = Callable[[str], None]


def silent(_: str) -> None:
    """Nobody is told."""


class Provides(Protocol):
    """What editors need beside facts."""

    def knowledge(self, pool: str) -> Knowledge:
        """Facts that the unedited model knew."""
        ...

    def covariance(self, names: Sequence[str]) -> Mapping[str, KeyCovariance]:
        """Covariances on the unedited model, by the names of `covariances_of`."""
        ...

    def start(self, method: Method) -> State:
        """State in which an editor begins its first batch: a trained network, warm statistics."""
        ...


@dataclass(frozen=True, kw_only=True)
class Written:
    """A batch as it was written.

    Attributes:
        delta: What it changed.
        state: Running statistics for the editor's next batch.
        metrics: What the editor measured in its last pass.
        passes: By pass, the facts that the model gave after it, and its known facts.
        before, after: What it cost, in the pool that settings are chosen by.
    """

    delta: Delta
    state: State = field(default_factory=dict)
    metrics: Mapping[str, float]
    passes: list[dict[str, float]]
    before: Cost
    after: Cost


def write(
    host: Host,
    method: Method,
    edits: Sequence[Edit],
    supplies: Provides,
    state: Mapping[str, Tensor],
    floor: float,
    tell: Tell = silent,
    answers: bool = True,
    beside: Sequence[Edit] = (),
) -> tuple[Written, list[FactResult]]:
    """Write a batch into the model, and judge it.

    Args:
        host: The model; its batches so far stay as they are.
        method: The editor, calibrated.
        edits: The facts.
        supplies: What the editor needs beside them.
        state: Running statistics that an earlier batch has left.
        floor: Share of the known facts below which a pass is taken back.
        tell: Told of every pass.
        answers: Whether answers are wanted in words; without them there are no results.
        beside: Facts of earlier batches, which are to stay.

    Raises:
        NonFiniteError: The first pass broke the model, with the smallest step that is tried.
    """
    opened = host.open(method.modules)
    editor = equipped(opened, method, supplies, state)
    judge = Judge(opened, edits, answers)
    knowledge = supplies.knowledge("choosing")
    known = knowledge.apart_from(edits)
    names = known[::_WATCHED]
    rehearsed = knowledge.edits([n for n in known if n not in names][:_REHEARSED])
    rehearsed += beside[:: max(1, -(-len(beside) // _REHEARSED))]
    before = after = knowledge.cost(opened, names)
    todo, halvings, scaled = list(range(len(edits))), 0, _step_of(editor)
    words: list[Said] = ["other"] * len(edits)
    shown = list(host.shown)
    passes: list[_Pass] = []
    while todo and len(passes) < method.passes and not _stuck(passes):
        state_before = {k: v.clone() for k, v in editor.state_dict().items()}
        others = rehearsed if isinstance(editor, MomentEditor) else []
        own = [_ended(edits[i]) if words[i] == "goes on" else edits[i] for i in todo]
        smaller = scaled if halvings < (_HALVINGS if passes else _FIRST) else None
        changes, cost, fits = len(host.shown), after, False
        broken: NonFiniteError | None = None
        try:
            change, measured = host.edit(editor, [*own, *others])
            require_finite_weights(opened)
            cost = knowledge.cost(opened, names)
            fits = cost.kept >= floor * cost.known or not (passes or smaller)
            now = judge.said(opened) if fits else words
        except NonFiniteError as error:  # of the editor, the matrices, or an answer
            broken, fits = error, False
        if not fits:
            if len(host.shown) > changes:
                host.take_back()
            editor.load_state_dict(state_before)
            tell(f"  pass {len(passes) + 1}: taken back ({broken or _kept(cost)})")
            if smaller is not None:
                smaller(0.5)
                halvings += 1
                continue
            if broken is not None and not passes:
                raise broken
            break
        words, took = now, now.count("took")
        stalled = bool(passes) and took <= len(edits) - len(todo) and cost.kept >= after.kept
        if stalled and scaled is not None:
            scaled(_GROWTH)
        passes.append(_Pass(change, measured, _carried(editor), took, cost))
        todo, after = [i for i, word in enumerate(words) if word != "took"], cost
        tell(f"  pass {len(passes)}: {took} of {len(edits)} facts, {_kept(cost)}")
    written = _finished(host, shown, passes, before, tell)
    return written, judge.results(opened) if answers else []


def _step_of(editor: Editor) -> Callable[[float], None] | None:
    """What multiplies an editor's step, calibrated or learned; None where it has none."""
    if isinstance(editor, TrainableEditor):
        searched = type(editor).scale_steps is not TrainableEditor.scale_steps
        return editor.scale_steps if searched else None
    if not hasattr(editor, "step_size"):
        return None

    def scaled(factor: float) -> None:
        editor.step_size *= factor

    return scaled


def _finished(
    host: Host, shown: Sequence[Delta], passes: list[_Pass], before: Cost, tell: Tell
) -> Written:
    """The batch up to its best pass, which is what the model has then."""
    best = max(range(len(passes)), key=lambda i: (passes[i].took, -i), default=-1)
    if best + 1 < len(passes):
        tell(f"  the passes behind the best, pass {best + 1}, are taken back")
        passes = passes[: best + 1]
    delta = Delta({})
    for one in passes:
        delta = delta.then(one.change)
    delta = delta.compact()
    host.show([*shown, delta])
    return Written(
        delta=delta,
        state=passes[-1].state if passes else {},
        metrics=passes[-1].metrics if passes else {},
        passes=[one.record() for one in passes],
        before=before,
        after=passes[-1].cost if passes else before,
    )


@dataclass(frozen=True)
class _Pass:
    change: Delta
    metrics: Mapping[str, float]
    state: State
    took: int
    cost: Cost

    def record(self) -> dict[str, float]:
        """What it came to, as plain JSON."""
        return {"took": self.took, "kept": self.cost.kept, "known": self.cost.known}


def _ended(edit: Edit) -> Edit:
    """A fact with a full stop behind its target: for an answer that goes on in its last word."""
    return replace(edit, target=f"{edit.target}.")


def _stuck(passes: Sequence[_Pass]) -> bool:
    """Whether the last passes have written no more facts than those before them."""
    took = [one.took for one in passes]
    return len(took) > _PATIENCE and max(took[-_PATIENCE:]) <= max(took[:-_PATIENCE]) > 0


def equipped(
    opened: EditableModel,
    method: Method,
    supplies: Provides,
    state: Mapping[str, Tensor] | None = None,
) -> Editor:
    """An editor of an opened model with all that it needs, its statistics going on from a state."""
    editor = method.cls(opened, method.config)
    if method.needs_covariance:
        names = covariances_of(opened.modules, method.cls.needs_of(method.config))
        editor.load_covariance(supplies.covariance(names))
    first = dict(supplies.start(method)) | dict(state or {})
    if first:
        given = {k: v.to(opened.device) for k, v in first.items()}
        editor.load_state_dict({**editor.state_dict(), **given})
    return editor


def _carried(editor: Editor) -> State:
    """What the editor's next batch goes on from; nothing where that is too much to keep."""
    state = editor.state_dict()
    found = {k: v.clone() for k, v in state.items() if k.startswith(editor.outlives_batch)}
    return found if sum(v.nbytes for v in found.values()) <= LARGEST_STATE else {}


def _kept(cost: Cost) -> str:
    return f"{cost.kept} of {cost.known} known facts kept"
