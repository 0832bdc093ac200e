"""Passes that cost too much, whichever editor made them, and what a batch leaves to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rledit.editing import Host, Supplies
from rledit.editing.judge import Judge
from rledit.editing.known import Knowledge
from rledit.editing.methods import method_of
from rledit.editing.writing import _step_of, equipped, silent
from rledit.editors import editor_class
from rledit.finite import NonFiniteError
from rledit.model import EditableModel
from rledit.records import Edit
from tests.unit.helpers.small_editing import (
    STEP,
    equal,
    learnt,
    rows,
    small_session,
    weights_of,
)

NETWORK: dict[str, Any] = {"rank": 8, "n_blocks": 1, "initial_step": 1e-3}
STEPPING: dict[str, dict[str, Any]] = {
    "ultraedit": {"step": 1e-3},
    "rledit": NETWORK,
    "mend": NETWORK,
    "malmen": NETWORK,
}


@pytest.mark.parametrize("name", STEPPING)
def test_half_the_step_writes_half_the_change(name: str) -> None:
    norms = []
    for factor in (1.0, 0.5):
        opened = EditableModel(*learnt(), ["down:0-1"])
        cls = editor_class(name)
        editor = cls(opened, cls.Config(modules=("down:0-1",), **STEPPING[name]))
        scaled = _step_of(editor)
        assert scaled is not None
        scaled(factor)
        edits = [Edit(edit_id=str(i), **row) for i, row in enumerate(rows(4))]
        editor.edit(editor.encode(edits))
        norms.append([opened.weights.delta_norm(module) for module in opened.modules])
    assert norms[0][0] > 0
    assert norms[1] == pytest.approx([norm / 2 for norm in norms[0]], rel=1e-4)


def test_an_editor_without_a_step_has_none_to_halve() -> None:
    opened = EditableModel(*learnt(), ["down:0"])
    cls = editor_class("ft")
    assert _step_of(cls(opened, cls.Config(modules=("down:0",)))) is None


@pytest.mark.parametrize("place", ["editor", "cost", "said"])
def test_a_pass_that_breaks_the_model_is_tried_with_half_the_step(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it shows: in float16 weights are numbers where activations are beyond it."""
    owner, name = {
        "editor": (editor_class("ultraedit"), "merge"),
        "cost": (Knowledge, "cost"),
        "said": (Judge, "said"),
    }[place]
    told: list[str] = []
    session = small_session(tmp_path, tell=told.append)
    session.edit(rows(2), editor="ultraedit", settings=STEP, floor=0.0)
    session.undo([1])
    before = weights_of(session.host.model)
    calls, whole = [], getattr(owner, name)
    breaks = {"editor": 1, "cost": 3, "said": 1}[place]  # costs are asked twice before any pass

    def broken(*args: Any) -> Any:
        found = whole(*args)
        calls.append(args)
        if len(calls) == breaks:
            raise NonFiniteError("an answer is not finite")
        return found

    monkeypatch.setattr(owner, name, broken)
    told.clear()
    result = session.edit(rows(4), editor="ultraedit", settings=STEP, floor=0.0)
    assert "  pass 1: taken back (an answer is not finite)" in told
    assert len(calls) > breaks and any(fact.took for fact in result.facts)
    session.undo(result.batches)
    assert equal(before, weights_of(session.host.model))


def test_a_model_that_breaks_whatever_the_step_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise NonFiniteError("a key is not finite")

    session = small_session(tmp_path)
    before = weights_of(session.host.model)
    monkeypatch.setattr(editor_class("ultraedit"), "merge", broken)
    with pytest.raises(NonFiniteError, match="a key is not finite"):
        session.edit(rows(2), editor="ultraedit", settings=STEP)
    assert equal(before, weights_of(session.host.model)) and not session.ledger.batches


LOCATED: dict[str, Any] = {
    "modules": ["down:0-1"], "value_steps": 6, "value_lr": 0.5, "clamp": 4.0, "value_decay": 1e-3,
    "fact_token": "last",
}  # fmt: skip
NULL: dict[str, Any] = {**LOCATED, "threshold": 0.05, "ridge": 1.0}
WITH_PAST_KEYS: dict[str, dict[str, Any]] = {
    "alphaedit": NULL,
    "deltaedit": NULL,
    "betaedit": {**NULL, "moment_weight": 1.0, "refresh_every": 3, "collapse_norm": 0.0},
    "memit": {**LOCATED, "moment_weight": 1.0, "past_keys": True},
    # Small enough to need no restraint, which is of each batch by itself in a ledger.
    "prune": {**LOCATED, "clamp": 0.05, "moment_weight": 1.0, "past_keys": True},
}


@pytest.mark.parametrize("name", WITH_PAST_KEYS)
def test_batches_of_a_ledger_know_past_keys_as_a_stream_does(name: str, tmp_path: Path) -> None:
    session = small_session(tmp_path)
    for first in (0, 3, 6):
        session.edit(
            rows(3, first), editor=name, settings=WITH_PAST_KEYS[name], passes=1, floor=0.0
        )
    supplies = Supplies(Host(*learnt()), tmp_path / "supplies", silent)
    method = method_of(session.host.model, name, WITH_PAST_KEYS[name])
    opened = EditableModel(*learnt(), method.modules)
    editor = equipped(opened, method, supplies)
    before = {module: opened.weights.read(module).clone() for module in opened.modules}
    for first in (0, 3, 6):
        edits = [Edit(edit_id=str(i), **row) for i, row in enumerate(rows(3, first))]
        editor.edit(editor.encode(edits))
    for module in opened.modules:
        change = opened.weights.read(module) - before[module]
        found = session.host.matrix(module) - before[module]
        assert float(change.norm()) > 0.1
        assert float((found - change).norm()) < 1e-3 * float(change.norm())


def test_stableedit_without_a_warm_up_goes_on_with_all_its_statistics(tmp_path: Path) -> None:
    session = small_session(tmp_path)
    settings = {**STEP, "warmup_batches": 0}
    counts = []
    for first in (0, 3):
        session.edit(rows(3, first), editor="stableedit", settings=settings, passes=1, floor=0.0)
        state = session.ledger.state(session.ledger.in_force[-1])
        assert {name.partition(".")[0] for name in state} == {"moments", "covariance", "warm"}
        counts.append([float(v) for name, v in sorted(state.items()) if name.endswith(".count")])
    assert all(later > earlier > 0 for earlier, later in zip(*counts, strict=True))


def test_a_batch_of_lyaplock_begins_anew(tmp_path: Path) -> None:
    """Its past outputs would write again what has been taken back since."""
    session = small_session(tmp_path)
    session.edit(rows(3), editor="lyaplock", settings=LOCATED, passes=1, floor=0.0)
    assert not session.ledger.state(session.ledger.in_force[-1])
