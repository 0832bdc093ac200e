"""The terms of a batch are all that it changed, whichever editor made it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rledit.editing import Delta
from rledit.editing.deltas import Recorder
from rledit.model import EditableModel
from rledit.shift import LowRankShift
from tests.unit.helpers.small_editing import equal, learnt, rows, small_session, weights_of

SETTINGS = {
    "ultraedit": {"modules": ["down:0-1"], "step": 1e-3},
    "memit": {"modules": ["down:0-1"], "value_steps": 3, "moment_weight": 1.0},
    "alphaedit": {"modules": ["down:0-1"], "value_steps": 3},
    "lyaplock": {"modules": ["down:0-1"], "value_steps": 3, "moment_weight": 1.0},
    "rome": {"modules": ["down:0"], "value_steps": 3},
    "ft": {"modules": ["down:0"], "steps": 2},
    "locft": {"modules": ["down:0"], "passes": 2},
    "crispedit": {"modules": ["down:0"], "passes": 2, "energy": 0.5},
    "rect": {"modules": ["down:0-1"], "value_steps": 3, "moment_weight": 1.0},
}
# Of ultraedit two passes over facts and rehearsed ones have more factors than the matrices entries.
DENSE = ("ft", "locft", "crispedit", "rect", "ultraedit")
# Where the model is of the edits' precision, nothing has drifted from it as a batch begins.
EITHER = ("lyaplock",)
# In bfloat16 all day: one whose terms are kept and one that is dense.
HALVED = {"rome", "ft"}
OFTEN = {"ultraedit", "memit", *HALVED}  # all day


@pytest.fixture(scope="module")
def supplies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What editors need of the model, made once."""
    return tmp_path_factory.mktemp("supplies")


@pytest.mark.parametrize(
    ("editor", "dtype"),
    [
        *(
            pytest.param(editor, torch.float32, marks=() if editor in OFTEN else pytest.mark.long)
            for editor in SETTINGS
        ),
        *(
            pytest.param(editor, torch.bfloat16, marks=pytest.mark.long)
            for editor in sorted(HALVED)
        ),
        *(
            pytest.param(editor, torch.bfloat16, marks=pytest.mark.slow)
            for editor in sorted(SETTINGS.keys() - HALVED)
        ),
    ],
)
def test_unedited_matrices_and_terms_give_the_edited_ones_bit_by_bit(
    editor: str, dtype: torch.dtype, supplies: Path
) -> None:
    session = small_session(supplies, dtype)
    for first in (0, 4):
        session.edit(rows(4, first), editor=editor, settings=SETTINGS[editor], passes=2, floor=0)
    deltas = session.ledger.deltas()
    assert len(deltas) == 2
    assert editor in EITHER or all(delta.dense == (editor in DENSE) for delta in deltas)
    assert all(delta.n_bytes <= 4 * 2 * 128 * 64 for delta in deltas)
    edited = weights_of(session.host.model)
    stored = [Delta.of({k: v.clone() for k, v in d.tensors().items()}) for d in deltas]
    session.host.show([])
    assert not equal(edited, weights_of(session.host.model))
    session.host.show(stored)
    assert equal(edited, weights_of(session.host.model))


def test_shifts_of_all_matrices_at_once_are_kept_as_factors(supplies: Path) -> None:
    session = small_session(supplies)
    session.edit(rows(2), editor="ultraedit", settings=SETTINGS["ultraedit"], passes=1, floor=0)
    (delta,) = session.ledger.deltas()
    assert len(delta.terms) == 2 and not delta.dense
    assert delta.n_bytes < 4 * 2 * 128 * 64 / 2


def test_a_change_without_terms_is_dense_and_exact() -> None:
    opened = EditableModel(*learnt(), ["down:0-1"])
    name = opened.modules[0]
    before = opened.weights.read(name).clone()
    recorder = Recorder(opened.weights)
    with recorder.recording():
        opened.weights.add(name, LowRankShift(torch.randn(2, 128), torch.randn(2, 64)))
        opened.weights.set(name, opened.weights.read(name) * 1.5)
    delta = recorder.delta()
    assert delta.dense and set(delta.terms) == {name}
    assert torch.allclose(
        before.double() + delta.matrix(name), opened.weights.read(name).double(), atol=1e-6
    )


def test_low_rank_terms_are_kept_as_they_were_added() -> None:
    opened = EditableModel(*learnt(), ["down:0-1"])
    recorder = Recorder(opened.weights)
    left, right = torch.randn(3, 128), torch.randn(3, 64)
    with recorder.recording():
        opened.weights.add(opened.modules[1], LowRankShift(left, right))
    delta = recorder.delta()
    assert delta.rank == 3 and not delta.dense and set(delta.terms) == {opened.modules[1]}
    assert torch.equal(delta.terms[opened.modules[1]][0].right, right)
    assert delta.n_bytes == 4 * 3 * (128 + 64)


def test_tensors_that_name_no_factor_are_refused() -> None:
    with pytest.raises(ValueError, match="names no factor"):
        Delta.of({"model.layers.0.mlp.down_proj": torch.zeros(1)})
