"""A pass that costs too much is tried again with half the step, whichever editor made it."""

from __future__ import annotations

from typing import Any

import pytest

from rledit.editing.writing import _step_of
from rledit.editors import editor_class
from rledit.model import EditableModel
from rledit.records import Edit
from tests.unit.helpers.small_editing import learnt, rows

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
