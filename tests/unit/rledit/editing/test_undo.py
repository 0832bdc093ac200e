"""What is taken back was never there."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from rledit import edit
from rledit.editing import Host, HostError, Ledger, LedgerError, Session, Supplies
from tests.unit.helpers.small_editing import (
    STEP,
    equal,
    learnt,
    rows,
    small_session,
    weights_of,
)

ULTRA: dict[str, Any] = {"editor": "ultraedit", "settings": STEP, "floor": 0, "passes": 2}


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)], ids=str
)
def test_any_subset_taken_back_leaves_a_model_that_never_had_it(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    session = small_session(tmp_path, dtype)
    unedited = weights_of(session.host.model)
    for first in (0, 4, 8, 12):
        session.edit(rows(4, first), **ULTRA)
    deltas = {b.number: session.ledger.delta(b) for b in session.ledger.batches}
    kept = [1, 2, 3, 4]
    for gone in ([3], [1], [4], [2]):
        session.undo(gone)
        kept = [n for n in kept if n not in gone]
        fresh = Host(*learnt(dtype))
        for number in kept:
            fresh.show([*fresh.shown, deltas[number]])
        assert equal(weights_of(session.host.model), weights_of(fresh.model))
        for name in session.host._matrices:
            total = session.host.original(name).double()
            for number in kept:
                total = total + deltas[number].matrix(name)
            assert float((session.host.matrix(name).double() - total).abs().max()) < 1e-6
    assert equal(unedited, weights_of(session.host.model))


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.long)], ids=str
)
def test_what_a_second_editor_needs_is_made_of_the_unedited_model(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    session = small_session(tmp_path, dtype)
    unedited = weights_of(session.host.model)
    forced = {"floor": 0.0, "passes": 1}
    session.edit(rows(4), editor="ft", settings={"modules": ["down:0-1"], "steps": 2}, **forced)
    # Its statistics are warmed on the unedited model, while the other's batch is in force.
    session.edit(rows(4, 4), editor="ultraedit", settings=STEP, **forced)
    fresh = small_session(tmp_path / "fresh", dtype)
    fresh.edit(rows(4), editor="ultraedit", settings=STEP, **forced)
    (first,) = (tmp_path / "supplies").rglob("warm-ultraedit-*")
    (second,) = (tmp_path / "fresh").rglob("warm-ultraedit-*")
    assert first.read_bytes() == second.read_bytes()
    session.undo([1, 2])
    assert equal(unedited, weights_of(session.host.model))


def test_what_is_written_while_the_unedited_model_shows_is_dropped(tmp_path: Path) -> None:
    host = small_session(tmp_path).host
    before = weights_of(host.model)
    with pytest.raises(KeyboardInterrupt), host.unedited():
        opened = host.open(["down:0-1"])
        name = opened.modules[0]
        opened.weights.set(name, opened.weights.read(name) * 2)
        raise KeyboardInterrupt
    assert equal(before, weights_of(host.model))
    assert torch.equal(host.original(name), before[f"{name}.weight"])


@pytest.mark.parametrize("gone", [pytest.param([1], marks=pytest.mark.long), [2], [1, 3]], ids=str)
def test_recomputed_it_is_the_model_that_was_only_given_the_others(
    gone: list[int], tmp_path: Path
) -> None:
    parts = {n: rows(4, 4 * (n - 1)) for n in (1, 2, 3)}
    session = small_session(tmp_path)
    other = small_session(tmp_path)
    for number, facts in parts.items():
        session.edit(facts, **ULTRA)
        if number not in gone:
            other.edit(facts, **ULTRA)
    found = session.undo(gone, recompute=True)
    assert equal(weights_of(session.host.model), weights_of(other.host.model))
    assert found.recomputed == bool(found.later)
    assert all(moved > 0 for moved in found.moved.values())
    assert [b.number for b in session.ledger.in_force] == [n for n in parts if n not in gone]


def test_what_keeping_and_recomputing_mean_is_said(tmp_path: Path) -> None:
    session = small_session(tmp_path)
    for first in (0, 4, 8):
        session.edit(rows(4, first), **ULTRA)
    kept = str(session.undo([1]))
    assert "later batches (2, 3) are kept as they are" in kept and "--recompute" in kept
    anew = str(session.undo([2], recompute=True))
    assert "computed anew" in anew and "batch 3 by" in anew
    assert "no later batch depends on it" in str(session.undo([3]))
    with pytest.raises(LedgerError, match="taken back already"):
        session.undo([3])
    with pytest.raises(LedgerError, match="no batch 7"):
        session.undo([7])


def test_batches_of_other_layers_do_not_depend_on_each_other_at_all(tmp_path: Path) -> None:
    for order in itertools.permutations((0, 1)):
        session = small_session(tmp_path)
        for layer in order:
            session.edit(
                rows(4, 4 * layer),
                editor="ft",
                settings={"modules": [f"down:{layer}"], "steps": 2},
                floor=0,
                passes=1,
            )
        session.undo([2])
        alone = small_session(tmp_path)
        alone.edit(
            rows(4, 4 * order[0]),
            editor="ft",
            settings={"modules": [f"down:{order[0]}"], "steps": 2},
            floor=0,
            passes=1,
        )
        assert equal(weights_of(session.host.model), weights_of(alone.host.model))


def test_results_of_one_model_can_be_taken_back_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, tokenizer = learnt()
    unedited = weights_of(model)
    first = edit(model, rows(4), tokenizer, **ULTRA)
    second = edit(model, rows(4, 4), tokenizer, **ULTRA)
    assert first.batches == (1,) and second.batches == (2,)
    first.undo()
    assert not equal(unedited, weights_of(model))
    second.undo()
    assert equal(unedited, weights_of(model))


def test_a_model_that_something_else_has_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, tokenizer = learnt()
    edit(model, rows(4), tokenizer, **ULTRA)
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.down_proj").weight.add_(1.0)
    with pytest.raises(HostError, match="down_proj.weight was changed by something else"):
        edit(model, rows(4, 4), tokenizer, **ULTRA)


def test_a_failing_batch_leaves_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(*learnt())
    ledger = Ledger.create(tmp_path / "out", host.record())
    session = Session(host, ledger, Supplies(host, tmp_path / "supplies"))
    session.edit(rows(4), **ULTRA)
    before = weights_of(host.model)
    monkeypatch.setattr(Ledger, "append", _refusing)
    with pytest.raises(OSError, match="no room"):
        session.edit(rows(4, 4), **ULTRA)
    assert equal(before, weights_of(host.model))
    assert [b.number for b in Ledger(tmp_path / "out").in_force] == [1]


def _refusing(*_: Any, **__: Any) -> None:
    raise OSError(28, "no room", "out")
