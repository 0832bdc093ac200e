"""An editor that lies outside the package: named by module and class."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.errors import ConfigError
from pipeline.plan.cells import cells_of
from rledit.editors import editor_class

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"

SOURCE = """
from rledit.editors.none import Unedited

class Mine(Unedited):
    name = "mine"

class Thief(Unedited):
    name = "ft"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"outside_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_it_is_a_cell_like_any_other(module: str) -> None:
    cell = cells_of(load_grid(GRID, [f"editors=[{{editor: '{module}:Mine'}}]"]))[0]
    assert cell.label == cell.address.editor == "mine"
    assert cell.identity["editor"] == "mine"
    assert len(cell.identity["editor_source"]) == 16
    assert "editor_source" not in cells_of(load_grid(GRID))[0].identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_here:Mine", "No module named"),
        ("{module}:Other", "has no attribute 'Other'"),
        ("json:JSONDecoder", "no subclass"),
        ("{module}:Thief", "belongs to another editor"),
    ],
)
def test_what_is_wrong_is_said(module: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        editor_class(name.format(module=module))
    with pytest.raises(ConfigError, match=rf"tiny.yaml.*{message}"):
        load_grid(GRID, [f"editors=[{{editor: '{name.format(module=module)}'}}]"])
